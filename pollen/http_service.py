"""HTTP of a service: an ASGI application in a thread beside the main loop, bounded against slow and many clients.

uvicorn knows no deadline for a request's header and body; `_Protocol` adds it, so that a client that sends a byte a
second (slow loris) is cut off, and `MAX_CONNECTIONS` bounds what it may hold until then.
"""

import asyncio
import socket
import threading
from typing import Any, Final, Self

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pollen.errors import PollenError, SettingsError
from pollen.http_settings import Http

REQUEST_S: Final = 10.0  # from a request's first byte, or the connection, to its last byte
IDLE_S: Final = 30
MAX_CONNECTIONS: Final = 128
MAX_HEADER_BYTES: Final = 16 * 1024
_STOP_S: Final = 5.0


class _Protocol(H11Protocol):
    """One connection, closed when a request takes longer than `REQUEST_S` to come in."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _watch(self) -> None:
        """A request that has begun must end in time; between requests uvicorn's own keep-alive timeout counts."""
        coming = self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0]))
        )
        if not coming and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif coming and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.close)


class HttpService:
    """Serves `application`, an ASGI one, on `settings` until `stop`; a context manager. Port 0 takes a free one here,
    so make none where the settings' 0 means none. Raises PollenError when the port is taken, SettingsError for files.
    """

    def __init__(self, application: Any, settings: Http) -> None:
        self._socket = _listen(settings)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=int(_STOP_S),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        try:
            config.load()
        except OSError as error:
            self._socket.close()
            raise SettingsError(f"http.certificate or key: {error}") from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Answer what has come in, then end."""
        self._server.should_exit = True
        self._thread.join(2 * _STOP_S)
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def _listen(settings: Http) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise PollenError(
            f"http = {settings.host}:{settings.port}: can't listen there ({error.strerror}); give [http] another port"
        ) from error
