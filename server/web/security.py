"""What every answer of the web side carries and every request must keep to, in front of the application."""

import json
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_TARGET_BYTES: Final = 2048
MAX_HEADERS: Final = 64
METHODS: Final = ("GET", "HEAD", "POST")
# The pages need scripts, styles, pictures and answers of this server; nothing inline, nothing from elsewhere.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS: Final[dict[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Security:
    """ASGI middleware. Adds `HEADERS` to every answer of `application`, and refuses other methods, bodies, long
    addresses, many headers, and Host headers that are none of `hosts` (`Http.hosts`): else a page elsewhere could have
    its own name resolved to this machine and read the answers (DNS rebinding)."""

    def __init__(self, application: ASGIApp, hosts: Sequence[str]) -> None:
        self._application = application
        self._hosts = frozenset(host.lower() for host in hosts)
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's question."""
        if scope["type"] != "http":
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._application(scope, receive, secured)
        else:
            await _answer(secured, *refused)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """(status, error) for a request that is not let through."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if scope["method"] not in METHODS:
            return 405, f"only {', '.join(METHODS)} are known here"
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            return 421, "this server is not called so; name it in http.names, or ask for it by its address"
        if len(headers) > MAX_HEADERS:
            return 431, f"a request may have {MAX_HEADERS} headers"
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return 414, f"an address may have {MAX_TARGET_BYTES} bytes"
        lengths = [value for name, value in headers if name == b"content-length"]
        if any(length != b"0" for length in lengths) or any(name == b"transfer-encoding" for name, _ in headers):
            return 413, "no request here has a body"
        return None


def _name(host: bytes) -> str:
    """A Host header in lower case, without its port."""
    text = host.decode("latin-1").lower()
    name, _, port = text.rpartition(":")
    return name if name and port.isascii() and port.isdigit() else text


async def _answer(send: Send, status: int, error: str) -> None:
    """A refusal that ends the connection: what follows on it may be the body of what was refused."""
    body = json.dumps({"error": error}).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
    if status == 405:
        headers.append(("allow", ", ".join(METHODS)))
    raw = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
