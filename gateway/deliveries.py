"""What the broker has delivered and not yet been acknowledged, in order of receipt."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from pollen.bridge import Upload


class Delivery:
    """One PUBLISH of QoS 1: its packet identifier, and what went up to the server until that is accepted."""

    __slots__ = ("at", "done", "mid", "upload")

    def __init__(self, mid: int, upload: Upload | None, *, done: bool = False) -> None:
        self.mid = mid
        self.upload = upload
        self.done = done  # whether it may be acknowledged once all before it were
        self.at = time.monotonic()


class Deliveries:
    """The unacknowledged messages of one MQTT connection.

    The server accepts in any order, yet PUBACKs must go out in the order in which the PUBLISHes came (MQTT 5,
    section 4.6): a message accepted early waits for those before it. Packet identifiers mean nothing to another
    connection, so all of this is forgotten with its connection and comes again from the broker.
    """

    def __init__(self) -> None:
        self._order: deque[Delivery] = deque()
        self._open: dict[int, Delivery] = {}
        self._last = 0
        self.bytes = 0  # of the uploads that are not accepted yet
        self.left = 0  # uploads left with the broker

    def __len__(self) -> int:
        return len(self._order)

    def add(self, mid: int, device: str, leaf: str, payload: bytes) -> Upload:
        """A message that the server must accept first; returns what to send it."""
        self._last += 1
        upload = Upload(self._last, device, leaf, payload)
        delivery = Delivery(mid, upload)
        self._order.append(delivery)
        self._open[upload.delivery] = delivery
        self.bytes += len(payload)
        return upload

    def add_finished(self, mid: int) -> None:
        """A message that needs nothing more than its turn."""
        self._order.append(Delivery(mid, None, done=True))

    def leave(self, mid: int) -> None:
        """An upload there is no memory for: never acknowledged, so that the broker delivers it again to the next
        connection."""
        self._order.append(Delivery(mid, None))
        self.left += 1

    def accept(self, number: int) -> float | None:
        """The server has accepted this delivery: seconds since it came in. None for one of an older stream or
        connection, which is not known any more."""
        delivery = self._open.pop(number, None)
        if delivery is None or delivery.upload is None:
            return None
        self.bytes -= len(delivery.upload.payload)
        delivery.upload = None
        delivery.done = True
        return time.monotonic() - delivery.at

    def take_acknowledgeable(self) -> Iterator[int]:
        """Packet identifiers to acknowledge now, in order; each is forgotten as it is taken."""
        while self._order and self._order[0].done:
            yield self._order.popleft().mid

    def renumber(self) -> list[Upload]:
        """What a new stream must get again, under new numbers, since numbers count within a stream."""
        uploads: list[Upload] = []
        self._open.clear()
        for delivery in self._order:
            if delivery.upload is not None:
                self._last += 1
                delivery.upload = replace(delivery.upload, delivery=self._last)
                self._open[self._last] = delivery
                uploads.append(delivery.upload)
        return uploads

    def forget(self) -> None:
        """The connection is gone. Numbers go on, so that a late `Accepted` can't hit a new delivery."""
        self._order.clear()
        self._open.clear()
        self.bytes = self.left = 0
