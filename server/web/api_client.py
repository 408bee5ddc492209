"""Asking a server's HTTP API, with what Python brings: one line about whatever goes wrong."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from pollen.errors import PollenError, SettingsError

TIMEOUT_S: Final = 10.0
LIMIT_BYTES: Final = 64 * 2**20
ROWS: Final = 1000  # a page


class ApiClient:
    """Asks the server at `url`; with `ca` (PEM), https trusts that authority beside the machine's. Raises SettingsError
    for what can't be an address; each method raises PollenError when there is no usable answer."""

    def __init__(self, url: str, ca: Path | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingsError(f"--server {url}: write http://HOST:PORT or https://HOST:PORT")
        if ca is not None and parts.scheme != "https":
            raise SettingsError(f"--ca goes with https; --server is {url}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_context(ca))
        )

    def fleet(self) -> dict[str, Any]:
        """/api/fleet."""
        return self._get("/api/fleet")

    def devices(self, q: str = "") -> Iterator[dict[str, Any]]:
        """The rows of all devices with `q` in their names, page by page."""
        after: str | None = ""
        while after is not None:
            page = self._get(f"/api/devices?{urlencode({'after': after, 'limit': ROWS, 'q': q})}")
            yield from page["devices"]
            after = page["next"]

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with self._opener.open(f"{self.url}{path}", timeout=TIMEOUT_S) as response:
                text = response.read(LIMIT_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise PollenError(f"{self.url}: {_told(error)}") from error
        except urllib.error.URLError as error:
            raise PollenError(f"{self.url}: {_unreachable(error.reason)}") from error
        except (OSError, ValueError) as error:
            raise PollenError(f"{self.url}: {_unreachable(error)}") from error
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise PollenError(f"{self.url}: answers, but not as pollen-server does; check host and port") from error
        if not isinstance(answer, dict):
            raise PollenError(f"{self.url}: answers, but not as pollen-server does; check host and port")
        return answer


def _context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"--ca {ca}: is no PEM file with certificates ({error})") from error
    return context


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(10_000))["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"HTTP status {error.code}; is it a pollen-server with [http]?"


def _unreachable(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message}); give the fleet's authority with --ca ca.pem"
    if isinstance(reason, ssl.SSLError):
        return f"no TLS there ({reason.reason or reason}); is it http instead of https?"
    if isinstance(reason, ConnectionRefusedError):
        return "nothing listens there; does pollen-server run, with port set in [http] of server.toml?"
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    return f"can't be reached ({reason})"
