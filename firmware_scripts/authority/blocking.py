"""Ask the server, by its HTTP API, to block a device or to let it in again."""

import http.client
import json
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from pollen.broker import LOOPBACK
from pollen.errors import PollenError, SettingsError

_DEADLINE_S: Final = 10.0
_MOST_BYTES: Final = 64 * 1024


def set_blocked(server: str, device: str, token: str, ca: Path, *, blocked: bool) -> bool:
    """Have the server with the URL `server` block `device`, or unblock it; whether that changed anything.

    Over https the server's certificate is one of the authority `ca`, or of the system's. Raises SettingsError for a URL
    that can't be used, PollenError when the server can't be reached or refuses.
    """
    url = urlsplit(server)
    host = url.hostname or ""
    if url.scheme not in ("http", "https") or not host:
        raise SettingsError(f"--server {server}: must be http://HOST:PORT or https://HOST:PORT")
    if url.scheme == "http" and host not in LOOPBACK:
        raise SettingsError(f"--server {server}: the token would pass readably; use https, or run this on the server")
    try:
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            context = ssl.create_default_context()
            context.load_verify_locations(ca)
            connection = http.client.HTTPSConnection(host, url.port, timeout=_DEADLINE_S, context=context)
        else:
            connection = http.client.HTTPConnection(host, url.port, timeout=_DEADLINE_S)
        connection.request(
            "POST",
            f"{url.path.rstrip('/')}/api/devices/{quote(device, safe='')}/{'block' if blocked else 'unblock'}",
            headers={"Authorization": f"Bearer {token}", "Content-Length": "0"},
        )
        response = connection.getresponse()
        answer = response.read(_MOST_BYTES)
        connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PollenError(f"{server} can't be asked: {error or type(error).__name__}") from error
    try:
        told = json.loads(answer)
        if response.status == http.client.OK and told["blocked"] is blocked:
            return bool(told.get("changed", True))
        reason = told["error"]
    except (ValueError, KeyError, TypeError):
        reason = "is that Pollen's server, and its [http] port?"
    raise PollenError(f"{server} refuses, with status {response.status}: {str(reason)[:200]}")


def read_token(path: Path) -> str:
    """The token in the file at `path`. Raises SettingsError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"--token-file {path}: can't be read; it holds http.token of server.toml") from error
    if not token or not token.isprintable():
        raise SettingsError(f"--token-file {path}: holds no token; it is http.token of server.toml")
    return token
