"""What waits to go up on one stream to the server."""

import threading
from collections import deque
from collections.abc import Iterator

from pollen import bridge
from pollen.bridge import Frame, Upload


class Outgoing:
    """A queue of frames from the loop to the stream's thread. The stream takes one batch at a time, as gRPC's flow
    control lets it."""

    def __init__(self, first: Frame) -> None:
        self._frames: deque[Frame] = deque([first])
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> None:
        """Queue `frame`."""
        with self._changed:
            self._frames.append(frame)
            self._changed.notify()

    def forget_uploads(self) -> None:
        """The broker delivers them all again: two copies must not wait here, nor five after five lost connections."""
        with self._changed:
            self._frames = deque(frame for frame in self._frames if not isinstance(frame, Upload))

    def close(self) -> None:
        """End `batches`; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify()

    def batches(self) -> Iterator[bytes]:
        """Encoded batches, each up to about `bridge.BATCH_BYTES` and `BATCH_FRAMES`, until it is closed."""
        while batch := self._take():
            yield bridge.encode(batch)

    def _take(self) -> list[Frame]:
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed)
            batch: list[Frame] = []
            size = 0
            while self._frames and size < bridge.BATCH_BYTES and len(batch) < bridge.BATCH_FRAMES:
                batch.append(self._frames.popleft())
                size += bridge.frame_bytes(batch[-1])
            return batch
