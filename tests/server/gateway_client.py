"""A gateway's end of the stream, for tests of the server: real gRPC, with devices that are mere payloads."""

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Self

import grpc
import numpy as np

from pollen import bridge, messages
from pollen.bridge import Accepted, DeviceState, Frame, Hello, ModelMessage, ToDevice, Upload
from pollen.bundle import Bundle, Tensor
from pollen.encoding import named
from pollen.messages import Birth, Receipt, Session, Task, Update
from tests.pollen.frames import encoded
from tests.pollen.manifests import manifest

DEADLINE_S = 5.0


def bundle(sizes: tuple[int, ...] = (3, 2), value: float = 0.0, model: str = "small") -> Bundle:
    """A bundle whose weights are all `value`; the server never runs its graph."""
    tensors = tuple(Tensor(f"t{i}", (size,)) for i, size in enumerate(sizes))
    described = manifest(*tensors, model=model)
    return Bundle(described, b"not run here", np.full(sum(sizes), value, np.float32), *[np.zeros(0, np.float32)] * 2)


class GatewayClient:
    """One gateway stream to a server on `port`; everything that comes down is kept."""

    def __init__(self, port: int, fleet: str = "default", name: str = "gateway-1") -> None:
        self._up: SimpleQueue[Frame | None] = SimpleQueue()
        self._down: SimpleQueue[Frame] = SimpleQueue()
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", bridge.MAX_MESSAGE_BYTES)]
        )
        self._call = self._channel.stream_stream(bridge.METHOD)(encoded(self._up))
        self._kept: list[Frame] = []
        self._deliveries = 0
        self.error: grpc.RpcError | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._up.put(Hello(name, fleet, "test"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._up.put(None)
        self._call.cancel()
        self._channel.close()

    def _read(self) -> None:
        try:
            for message in self._call:
                for frame in bridge.decode(message):
                    self._down.put(frame)
        except grpc.RpcError as error:
            self.error = error

    def next(self, wanted: Callable[[Frame], bool]) -> Any:
        """The first frame from the server that is `wanted` and was not yet taken; others stay for later."""
        for frame in self._kept:
            if wanted(frame):
                self._kept.remove(frame)
                return frame
        while True:
            try:
                frame = self._down.get(timeout=DEADLINE_S)
            except Empty:
                raise AssertionError(f"the server sent nothing within {DEADLINE_S:.0f} s") from self.error
            if wanted(frame):
                return frame
            self._kept.append(frame)

    def birth(self, device: str, connection: int = 1) -> None:
        """Announce `device` as online."""
        self._up.put(DeviceState(device, messages.encode(Birth(Session(device.encode().ljust(8)[:8], connection)))))

    def send(self, frame: Frame) -> None:
        """Send any frame."""
        self._up.put(frame)

    def upload(self, device: str, payload: bytes, leaf: str = "update") -> int:
        """Hand over an upload; returns its delivery number."""
        self._deliveries += 1
        self._up.put(Upload(self._deliveries, device, leaf, payload))
        return self._deliveries

    def task(self, device: str) -> Task:
        """The next task for `device`."""
        return messages.decode_task(self._payload(device, "task"))

    def receipt(self, device: str) -> Receipt:
        """The next receipt for `device`."""
        return messages.decode_receipt(self.receipt_payload(device))

    def receipt_payload(self, device: str) -> bytes:
        """The next receipt for `device`, as sent."""
        return self._payload(device, "receipt")

    def _payload(self, device: str, leaf: str) -> bytes:
        frame = self.next(lambda f: isinstance(f, ToDevice) and (f.device, f.leaf) == (device, leaf))
        payload: bytes = frame.payload
        return payload

    def model(self, leaf: str) -> bytes:
        """The next payload for the model's head, weights or bundle topic."""
        payload: bytes = self.next(lambda frame: isinstance(frame, ModelMessage) and frame.leaf == leaf).payload
        return payload

    def accepted(self) -> tuple[int, ...]:
        """The next acknowledged deliveries."""
        deliveries: tuple[int, ...] = self.next(lambda frame: isinstance(frame, Accepted)).deliveries
        return deliveries


def update(task: Task, model: Bundle, value: float, /, **changes: Any) -> bytes:
    """An update for `task` whose delta is `value` everywhere, with some of its fields changed."""
    tensors = model.manifest.shared
    delta = named(np.full(model.manifest.shared_size, value, np.float32), tensors)
    fields = {"task": task.task, "seq": 1, "base": task.version, "samples": 10, "steps": 5, "delta": delta}
    return messages.encode(Update(**(fields | changes)))


def random_task_id() -> bytes:
    """A task id that no server gave out."""
    return os.urandom(messages.TASK_ID_BYTES)
