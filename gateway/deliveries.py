"""What the broker has delivered and not yet been acknowledged, in order of receipt."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from pollen.bridge import Upload


class Delivery:
    """One PUBLISH of QoS 1: its packet identifier, and what went up to the server until that is accepted."""

    __slots__ = ("mid", "upload")

    def __init__(self, mid: int, upload: Upload | None) -> None:
        self.mid = mid
        self.upload = upload


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

    def __len__(self) -> int:
        return len(self._order)

    def add(self, mid: int, device: str, leaf: str, payload: bytes) -> Upload:
        """A message that the server must accept first; returns what to send it."""
        self._last += 1
        upload = Upload(self._last, device, leaf, payload)
        delivery = Delivery(mid, upload)
        self._order.append(delivery)
        self._open[upload.delivery] = delivery
        return upload

    def add_finished(self, mid: int) -> None:
        """A message that needs nothing more than its turn."""
        self._order.append(Delivery(mid, None))

    def accept(self, number: int) -> None:
        """The server has accepted this delivery; one of an older stream or connection is not known any more."""
        delivery = self._open.pop(number, None)
        if delivery is not None:
            delivery.upload = None

    def take_acknowledgeable(self) -> Iterator[int]:
        """Packet identifiers to acknowledge now, in order; each is forgotten as it is taken."""
        while self._order and self._order[0].upload is None:
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
