"""The server's end of the gateways' gRPC streams: one `Stream` a gateway, frames in, frames out."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from pollen import bridge
from pollen.bridge import Frame, Hello, ModelMessage
from pollen.errors import MessageError, PollenError
from pollen.tls import check_endpoint
from server import bridge_tls
from server.bridge_tls import Peer, RevocationList, peer_of
from server.refusals import Refusals, RefusedError

LOG = logging.getLogger("pollen.server.bridge")

MAX_GATEWAYS: Final = 64
HELLO_S: Final = 10.0  # a connection that says nothing for so long is not a gateway
ALIVE_CHECK_S: Final = 1.0
_NO_LIMIT: Final = -1


@dataclass(frozen=True, slots=True)
class Listen:
    """`[listen]`: where gateways dial in. With `ca`, `certificate` and `key` (PEM files): mutual TLS, and gateways show
    a gateway's certificate of that CA that is not in `crl`; without, only loopback is allowed. Port 0: a free one.
    The files are read again when they change."""

    host: str = "127.0.0.1"
    port: int = 7070
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    crl: Path | None = None

    def __post_init__(self) -> None:
        check_endpoint(self.host, self.port, self.ca, self.certificate, self.key, port_zero=True)
        if self.crl is not None and self.ca is None:
            raise ValueError("crl goes with ca, certificate and key; set them or leave it out")


class Stream:
    """One gateway's open stream; frames put here go to it in order.

    A model message that still waits is replaced by a newer one for the same topic, and a task by a newer one of its
    kind for the same device, so a gateway that stands still costs one snapshot of memory and not one a second.
    """

    def __init__(self, gateway: str, alive: Callable[[], bool] = lambda: True) -> None:
        """`alive` is asked every second; the stream ends when it says no."""
        self.gateway = gateway
        self.software = self.peer = ""  # the gateway's release and address, for people
        self.received_bytes = self.sent_bytes = 0
        self._alive = alive
        self.greeted: set[str] = set()  # devices whose open task went out on this stream
        self._frames: OrderedDict[object, Frame] = OrderedDict()
        self._ready = threading.Condition()
        self._closed = False
        self._finished = False

    def put(self, *frames: Frame, replacing: object = None) -> None:
        """Queue `frames`; once the stream is ending they are dropped: whatever was not acknowledged comes again.

        `replacing`: a key of the one frame given; it takes the place of a waiting one that was put with an equal key.
        """
        with self._ready:
            if self._closed or self._finished:
                return
            for frame in frames:
                self._frames[replacing or _place(frame)] = frame
            self._ready.notify()

    def finish(self) -> None:
        """End the stream once everything queued has been sent."""
        with self._ready:
            self._finished = True
            self._ready.notify()

    def close(self) -> None:
        """End the stream at once."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    @property
    def waiting(self) -> int:
        """How many frames wait to be sent."""
        return len(self._frames)

    def batches(self) -> Iterator[bytes]:
        """Encoded batches of what is queued, until the stream ends."""
        while True:
            with self._ready:
                while not self._ready.wait_for(lambda: self._frames or self._closed or self._finished, ALIVE_CHECK_S):
                    if not self._alive():
                        return
                if self._closed or not self._frames or not self._alive():
                    return
                batch: list[Frame] = []
                size = 0
                while self._frames and size < bridge.BATCH_BYTES and len(batch) < bridge.BATCH_FRAMES:
                    _, frame = self._frames.popitem(last=False)
                    batch.append(frame)
                    size += bridge.frame_bytes(frame)
            message = bridge.encode(batch)
            self.sent_bytes += len(message)
            yield message


def _place(frame: Frame) -> object:
    """What a frame replaces in the queue: equal for two frames of which only the newer matters."""
    return (frame.model, frame.leaf) if isinstance(frame, ModelMessage) else object()


class BridgeService(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Accepts gateways of one fleet and hands their frames to whoever owns the fleet.

    opened(stream), received(stream, frame) and closed(stream) are called from the streams' threads; `received` may
    block, and gRPC's flow control then holds the gateway back.
    """

    def __init__(
        self,
        fleet: str,
        listen: Listen | None = None,
        *,
        opened: Callable[[Stream], None],
        received: Callable[[Stream, Frame], None],
        closed: Callable[[Stream], None],
    ) -> None:
        """Raises SettingsError when the revocation list of `listen` can't be used."""
        self._fleet = fleet
        self.refusals = Refusals()
        self._revoked = RevocationList(listen.crl, listen.ca) if listen and listen.ca and listen.crl else None
        self._opened = opened
        self._received = received
        self._closed = closed

    def service(self, handler_call_details: Any) -> Any:
        """gRPC's question who serves a method."""
        if handler_call_details.method == bridge.METHOD:
            return grpc.stream_stream_rpc_method_handler(self._connect)
        return None

    def _connect(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        impatience = threading.Timer(HELLO_S, context.cancel)
        impatience.daemon = True
        impatience.start()
        try:
            peer = self._admitted(context)
            first, *others = bridge.decode(next(requests))
            stream = self._greet(first, peer)
            stream.peer = str(context.peer())
        except RefusedError as refused:
            self.refusals.count(refused, context.peer())
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))
        except (MessageError, StopIteration, ValueError, grpc.RpcError) as error:
            text = str(error) or "the first message must hold a hello"
            self.refusals.count(RefusedError("hello", text), context.peer())
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        finally:
            impatience.cancel()
        LOG.info("gateway %s connected from %s", stream.gateway, context.peer())
        self._opened(stream)
        # The callback runs when the gateway goes away in whatever manner; it ends `batches` below.
        context.add_callback(stream.close)
        reader = threading.Thread(target=self._read, args=(stream, others, requests), daemon=True)
        reader.start()
        try:
            yield from stream.batches()
        finally:
            stream.close()
            self._closed(stream)
            LOG.info("gateway %s disconnected", stream.gateway)

    def _admitted(self, context: Any) -> Peer | None:
        """Who has dialled in; None on a plain connection. Raises RefusedError unless it is a gateway."""
        peer = peer_of(context)
        if peer is None:
            return None
        self.refusals.opened()
        if peer.role != "gateway":
            held = f"a {peer.role}'s" if peer.role else "of no role"
            raise RefusedError(
                "role",
                f"the certificate of {peer.name!r} is {held}, only gateways' are taken here;"
                " make one with `pollen ca issue NAME --role gateway`",
            )
        if self._is_revoked(peer):
            raise RefusedError("revoked", f"the certificate of {peer.name!r} is revoked; issue another")
        return peer

    def _is_revoked(self, peer: Peer | None) -> bool:
        return peer is not None and self._revoked is not None and self._revoked.holds(peer.serial)

    def _greet(self, hello: Frame, peer: Peer | None) -> Stream:
        if not isinstance(hello, Hello):
            raise MessageError("the first frame must be a hello")
        if hello.protocol != bridge.PROTOCOL:
            raise MessageError(
                f"gateway speaks bridge protocol {hello.protocol}, this server {bridge.PROTOCOL}; upgrade"
            )
        if hello.fleet != self._fleet:
            raise MessageError(f"this server serves fleet {self._fleet!r}, the gateway belongs to {hello.fleet!r}")
        if peer is not None and hello.gateway != peer.name:
            raise RefusedError(
                "name", f"gateway {hello.gateway!r} shows the certificate of {peer.name!r}; names must be equal"
            )
        stream = Stream(hello.gateway, alive=lambda: not self._is_revoked(peer))
        stream.software = hello.software
        return stream

    def _read(self, stream: Stream, frames: list[Frame], requests: Iterator[bytes]) -> None:
        try:
            for frame in frames:
                self._received(stream, frame)
            for message in requests:
                stream.received_bytes += len(message)
                for frame in bridge.decode(message):
                    self._received(stream, frame)
        except grpc.RpcError:
            LOG.debug("gateway %s went away", stream.gateway)
        except MessageError as error:
            LOG.error("gateway %s: %s; its stream is closed", stream.gateway, error)
        except Exception:
            LOG.exception("gateway %s: its stream is closed", stream.gateway)
        finally:
            stream.close()


def serve(service: BridgeService, listen: Listen) -> tuple[Any, int]:
    """Start a gRPC server for `service`; returns it and its port. Raises PollenError when the port can't be had,
    SettingsError for files that can't be used."""
    server = grpc.server(
        ThreadPoolExecutor(MAX_GATEWAYS, thread_name_prefix="bridge"),
        handlers=(service,),
        maximum_concurrent_rpcs=MAX_GATEWAYS,  # one more is told so, instead of waiting for a thread for ever
        options=[
            ("grpc.max_receive_message_length", bridge.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _NO_LIMIT),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.server_handshake_timeout_ms", int(1000 * HELLO_S)),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.max_connection_idle_ms", int(1000 * HELLO_S)),  # one without a stream
        ],
    )
    address = f"[{listen.host}]:{listen.port}" if ":" in listen.host else f"{listen.host}:{listen.port}"
    try:
        if listen.ca and listen.certificate and listen.key:
            if listen.crl is None:
                LOG.warning("listen.crl is not set: gateways that were revoked are still taken")
            dialled = service.refusals.dialled
            port = server.add_secure_port(
                address, bridge_tls.credentials(listen.ca, listen.certificate, listen.key, dialled)
            )
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise PollenError(f"listen = {address}: can't listen there; is the port taken?") from error
    server.start()
    return server, port
