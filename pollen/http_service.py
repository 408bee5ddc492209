"""HTTP of a service: an ASGI application in a thread beside the main loop, bounded against slow and many clients.

uvicorn knows no deadline for a request or an answer, and beyond its limit of connections refuses the newcomer.
`_Protocol` adds deadlines, so that who sends (slow loris) or reads a byte a second is cut off, and makes room for a
newcomer by closing the connection that has waited longest: an honest client's takes milliseconds.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Hashable
from functools import partial
from typing import Any, Final, Self, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pollen.errors import PollenError, SettingsError
from pollen.http_settings import Http

REQUEST_S: Final = 10.0  # from a request's first byte, or the connection, to its last byte
ANSWER_S: Final = 60.0  # from a request's last byte until its answer is written
IDLE_S: Final = 30
MAX_CONNECTIONS: Final = 128
MAX_HEADER_BYTES: Final = 16 * 1024
_STOP_S: Final = 5.0


class _Listener(socket.socket):
    """A listening socket that keeps what it has accepted until its TLS handshake is through, the newest only: asyncio
    gives a handshake a minute and does not count them."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self._coming: dict[int, socket.socket] = {}  # by file descriptor, the oldest first

    def accept(self) -> tuple[socket.socket, Any]:
        """As of any socket; may close the connection that has waited longest."""
        accepted, address = super().accept()
        self._coming.pop(accepted.fileno(), None)
        self._coming[accepted.fileno()] = accepted
        if len(self._coming) > 2 * MAX_CONNECTIONS:
            oldest = self._coming.pop(next(iter(self._coming)))
            with contextlib.suppress(OSError):  # it may have ended by itself
                oldest.shutdown(socket.SHUT_RDWR)
        return accepted, address

    def through(self, descriptor: int) -> None:
        """The connection with this file descriptor has ended its handshake."""
        self._coming.pop(descriptor, None)


class _Protocol(H11Protocol):
    """One connection, cut off when a request takes longer than `REQUEST_S` or its answer longer than `ANSWER_S`."""

    def __init__(self, listener: _Listener, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._listener = listener
        self._doing: Hashable = None
        self._since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._cut = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._listener.through(transport.get_extra_info("socket").fileno())
        self._watch()
        self._make_room()

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

    @property
    def _answers(self) -> bool:
        """Whether a request is in and its answer is not all given to the system: its client may not read."""
        if self.cycle is None or self.cycle.more_body:
            return False
        return not self.cycle.response_complete or self.transport.get_write_buffer_size() > 0

    @property
    def _now(self) -> Hashable:
        """What is done now that needs a deadline: this answer, or a request that comes in; False for nothing."""
        if self._answers:
            return id(self.cycle)
        return self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0]))
        )

    def _watch(self) -> None:
        """Set the deadline for what is done now; between requests uvicorn's own keep-alive timeout counts."""
        doing = self._now
        if doing == self._doing and self._deadline is not None:
            return
        self._doing, self._since = doing, self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if doing:
            self._deadline = self.loop.call_later(ANSWER_S if self._answers else REQUEST_S, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self._now == self._doing:
            self.cut()
        else:
            self._watch()

    def _make_room(self) -> None:
        others = [one for one in self.connections if isinstance(one, _Protocol) and one is not self and not one._cut]
        if len(others) >= MAX_CONNECTIONS:
            min(others, key=lambda one: (one._answers, one._since)).cut()

    def cut(self) -> None:
        """End the connection at once: what its client has not read may stay unread for ever."""
        self._cut = True
        self.transport.abort()


class HttpService:
    """Serves `application`, an ASGI one, on `settings` until `stop`; a context manager. Port 0 takes a free one here,
    so make none where the settings' 0 means none. Raises PollenError when the port is taken, SettingsError for files.
    """

    def __init__(self, application: Any, settings: Http) -> None:
        self._socket = _Listener(_listen(settings))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            http=cast("type[asyncio.Protocol]", partial(_Protocol, self._socket)),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",  # below, anyone could fill the log with lines about requests that are none
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            backlog=MAX_CONNECTIONS,
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
