"""The gateway's end of the gRPC stream to the server: dial, greet, read, and dial again."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from gateway.backoff import Backoff
from gateway.outgoing import Outgoing
from gateway.settings import Server
from pollen import bridge
from pollen.bridge import Frame, Hello
from pollen.errors import MessageError, SettingsError

LOG = logging.getLogger("pollen.gateway.uplink")

# Batches of frames that may wait for the loop; beyond, reading stops and gRPC's flow control holds the server.
_WAITING_EVENTS: Final = 4
_DIAL_S: Final = 5.0
# After a dial grpc looks every 0.2 s, in a thread, whether anyone still wants to know the channel's state, and prints a
# traceback when the channel is closed under it.
_SETTLE_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class StreamUp:
    """A stream is open; what is put into `queue` goes up on it, after the Hello that is already there."""

    queue: Outgoing


@dataclass(frozen=True, slots=True)
class StreamDown:
    """The stream last reported is gone, and whatever was in its queue with it."""


Event = StreamUp | StreamDown | list[Frame]


class Uplink:
    """Keeps one stream to the server open, from a thread of its own.

    The loop takes events in the order in which they happened: a stream came up, frames arrived on it, it went
    down. `wake` is called after each, from the thread.
    """

    def __init__(self, server: Server, hello: Hello, wake: Callable[[], None]) -> None:
        self._server = server
        self._hello = hello
        self._wake = wake
        _credentials(server)  # files that can't be read are an error now, and a reason to wait later
        self._events: queue.Queue[Event] = queue.Queue(_WAITING_EVENTS)
        self._stopped = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def take(self) -> Event | None:
        """The next event, None when there is none."""
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    @property
    def waiting(self) -> int:
        """Batches of frames from the server that wait for the loop."""
        return self._events.qsize()

    def change(self, server: Server) -> None:
        """Dial `server` from now on, and at once where it is another than before."""
        before, self._server = self._server, server
        if before != server:
            self.redial()

    def redial(self) -> None:
        """Open a new stream in place of the present one: the server then sends its models again."""
        call = self._call
        if call is not None:
            call.cancel()

    def stop(self) -> None:
        """Close the stream and end the thread."""
        self._stopped.set()
        call = self._call
        if call is not None:
            call.cancel()
        self._thread.join(2.0 * _DIAL_S)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopped.is_set():
            try:
                self._connect(backoff)
            except Exception:
                # Whatever it was, a gateway without an uplink is of no use: note it and dial again.
                LOG.exception("uplink failed; dialling again")
            self._stopped.wait(backoff.wait_s())

    def _connect(self, backoff: Backoff) -> None:
        """One stream, from dialling to its end."""
        server = self._server
        target = server.target
        try:
            credentials = _credentials(server)
        except SettingsError as error:
            LOG.error("%s; trying again", error)
            return
        with _channel(target, credentials) as channel:
            if not self._dial(channel):
                if not self._stopped.is_set():
                    LOG.warning("server at %s is not reachable: %s; trying again", target, _why(channel))
                time.sleep(_SETTLE_S)
                return
            out = Outgoing(self._hello)
            self._call = channel.stream_stream(bridge.METHOD)(out.batches())
            backoff.connected()
            try:
                if self._put(StreamUp(out)):
                    LOG.info("stream to the server at %s is open", target)
                    self._read(self._call)
            finally:
                self._call.cancel()
                out.close()  # ends `batches`, which waits in a thread of grpc's
                self._put(StreamDown())
                time.sleep(_SETTLE_S)

    def _dial(self, channel: Any) -> bool:
        """Wait until the channel is connected; False when it takes too long or the uplink is being stopped."""
        ready = grpc.channel_ready_future(channel)
        deadline = time.monotonic() + _DIAL_S
        while time.monotonic() < deadline and not self._stopped.is_set():
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(timeout=0.5)
                return True
        ready.cancel()
        return False

    def _read(self, call: Any) -> None:
        try:
            for message in call:
                if not self._put(bridge.decode(message)):
                    return
            LOG.warning("the server closed the stream; dialling again")
        except MessageError as error:
            LOG.error("from the server: %s; dialling again", error)
        except grpc.RpcError as error:
            if not self._stopped.is_set():
                LOG.warning("stream to the server lost: %s: %s", call.code().name, call.details() or error)

    def _put(self, event: Event) -> bool:
        """Hand `event` to the loop, waiting for room; False once the uplink is being stopped."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=0.5)
                self._wake()
                return True
        return False


def _channel(target: str, credentials: Any) -> Any:
    options = [
        ("grpc.max_send_message_length", bridge.MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", bridge.MAX_MESSAGE_BYTES),
        # Find a half-open connection within half a minute, also while nothing is sent.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Each attempt dials for itself: the waits between them are ours, not those of a shared subchannel.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # The environment's proxy is for the web; a server on loopback is never behind one.
        ("grpc.enable_http_proxy", 0),
    ]
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def _why(channel: Any) -> str:
    """What keeps `channel` from connecting; only a call tells, and it fails at once while there is a reason."""
    try:
        next(channel.stream_stream(bridge.METHOD)(iter(()), timeout=1.0), None)
    except grpc.RpcError as error:
        return str(error.details() or error.code().name)
    return "it answers now"


def _credentials(server: Server) -> Any:
    if not (server.ca and server.certificate and server.key):
        return None
    try:
        return grpc.ssl_channel_credentials(
            server.ca.read_bytes(), server.key.read_bytes(), server.certificate.read_bytes()
        )
    except OSError as error:
        raise SettingsError(f"server.ca, certificate or key: {error}") from error
