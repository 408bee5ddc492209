"""A small real server end of the bridge: keeps what gateways send, answers when a test says so."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc

from pollen import bridge
from pollen.bridge import Accepted, DeviceState, DeviceVitals, Frame, Hello, Upload
from tests.pollen.frames import encoded


class Stream:
    """One gateway's stream: the frames it sent so far, and the queue of what goes down."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.down: SimpleQueue[Frame | None] = SimpleQueue()

    @property
    def gateway(self) -> str:
        first = self.frames[0] if self.frames else None
        return first.gateway if isinstance(first, Hello) else ""

    @property
    def uploads(self) -> list[Upload]:
        return [frame for frame in self.frames if isinstance(frame, Upload)]

    @property
    def payloads(self) -> list[bytes]:
        return [upload.payload for upload in self.uploads]

    @property
    def states(self) -> list[DeviceState]:
        return [frame for frame in self.frames if isinstance(frame, DeviceState)]

    @property
    def vitals(self) -> list[DeviceVitals]:
        return [frame for frame in self.frames if isinstance(frame, DeviceVitals)]

    def accept(self, *uploads: Upload) -> None:
        self.down.put(Accepted(tuple(upload.delivery for upload in uploads)))


class BridgeServer(grpc.GenericRpcHandler):
    """Listens on 127.0.0.1; after `stop`, `start` takes the same port again.

    With `accepting` each upload is accepted as it comes.
    """

    def __init__(self, credentials: Any = None) -> None:
        self.port = 0
        self.accepting = False
        self.streams: list[Stream] = []
        self.on_upload: Callable[[Stream, Upload], None] = lambda _stream, _upload: None
        self._credentials = credentials
        self._server: Any = None
        self._lock = threading.Lock()

    def start(self) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(8),
            handlers=(self,),
            options=[
                ("grpc.max_receive_message_length", bridge.MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", bridge.MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait(10)
        for stream in self.streams:
            stream.down.put(None)

    @property
    def stream(self) -> Stream | None:
        """The newest stream that has said hello."""
        return next((one for one in reversed(self.streams) if one.gateway), None)

    @property
    def payloads(self) -> list[bytes]:
        """What all streams brought up, in order of the streams."""
        return [payload for stream in self.streams for payload in stream.payloads]

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == bridge.METHOD:
            return grpc.stream_stream_rpc_method_handler(self._connect)
        return None

    def _connect(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        stream = Stream()
        with self._lock:
            self.streams.append(stream)
        context.add_callback(lambda: stream.down.put(None))
        threading.Thread(target=self._read, args=(stream, requests), daemon=True).start()
        yield from encoded(stream.down)

    def _read(self, stream: Stream, requests: Iterator[bytes]) -> None:
        try:
            for message in requests:
                for frame in bridge.decode(message):
                    stream.frames.append(frame)
                    if isinstance(frame, Upload):
                        self.on_upload(stream, frame)
                        if self.accepting:
                            stream.accept(frame)
        except grpc.RpcError:
            pass  # the gateway went away
