"""From the outbox to the broker and back: publish, publish again, and close a task at its receipt."""

import logging
import random
from dataclasses import dataclass
from typing import Final

from edge_client.clock import Clock
from edge_client.network.outbox import Outbox, Row
from edge_client.network.session import PACKET_OVERHEAD_BYTES, MqttSession
from edge_client.settings import Upload
from pollen.errors import StoreError
from pollen.messages import Receipt

LOG = logging.getLogger(__name__)

UNHEARD_S: Final = 1.0  # first wait when no gateway was there; doubles, up to retry_s's own back-off
LARGEST_BACK_OFF: Final = 10  # times retry_s


@dataclass(slots=True)
class _Attempts:
    """How often a row was published on this connection, when last, and when it is next due (monotonic seconds)."""

    count: int = 0
    published: float = float("-inf")
    due: float = 0.0


class Delivery:
    """Hands the outbox's rows to MQTT, one at a time, until their receipts come."""

    def __init__(self, outbox: Outbox, session: MqttSession, settings: Upload, clock: Clock) -> None:
        self._outbox = outbox
        self._session = session
        self._settings = settings
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._attempts: dict[bytes, _Attempts] = {}
        self._in_flight: tuple[int, Row] | None = None
        self._largest_packet: int | None = None
        self._refused_sizes: set[bytes] = set()
        self.merged = 0
        self.rejected = 0

    @property
    def oversize(self) -> int:
        """Rows larger than the broker's packet limit, which can't be sent now."""
        return len(self._refused_sizes)

    def connected(self, largest_packet: int | None) -> None:
        """A new connection: every row is due at once."""
        self._largest_packet = largest_packet
        self._in_flight = None
        self._attempts.clear()
        self._refused_sizes.clear()

    def lost(self) -> None:
        """The connection is gone, and with it what was in flight."""
        self._in_flight = None

    def acknowledged(self, ticket: int, error: str, *, heard: bool) -> bool:
        """The broker answered a publish; whether it was one of ours.

        Only the receipt ends a row, so a good answer just frees the way.

        Not `heard`: no gateway was subscribed, as after a broker's crash, until they are back. Then waiting a whole
        `retry_s` would only make the update stale.
        """
        if self._in_flight is None or self._in_flight[0] != ticket:
            return False
        row = self._in_flight[1]
        self._in_flight = None
        if error:
            LOG.error(
                "the broker refused our %s (task %s): %s; check its access rules", row.leaf, row.task.hex()[:8], error
            )
        elif not heard and row.task in self._attempts:
            attempts = self._attempts[row.task]
            seconds = UNHEARD_S * 2.0 ** min(attempts.count - 1, 10) * self._random.uniform(0.5, 1.0)
            attempts.due = min(attempts.due, self._clock.monotonic() + seconds)
        return True

    def receipted(self, receipt: Receipt) -> Row | None:
        """A receipt came; returns the row it ended. Raises StoreError when the outbox can't be written."""
        row = self._outbox.receipted(receipt.task, merged=receipt.outcome == "merged")
        self._attempts.pop(receipt.task, None)
        self._refused_sizes.discard(receipt.task)
        if self._in_flight is not None and self._in_flight[1].task == receipt.task:
            self._in_flight = None
        name = receipt.task.hex()[:8]
        if row is None:
            LOG.debug("receipt for task %s, which has no reply here", name)
        elif receipt.outcome == "rejected":
            self.rejected += 1
            LOG.warning("%s for task %s was rejected: %s", row.leaf, name, receipt.reason)
        else:
            self.merged += row.leaf == "update"
            LOG.info(
                "%s %d (task %s) %s: version %d, weight %.3g, staleness %d",
                row.leaf, row.seq, name, receipt.outcome, receipt.version, receipt.weight, receipt.staleness,
            )  # fmt: skip
        return row

    def repeat(self, task: bytes) -> None:
        """The server asks again for an answered task: its row is due now.

        Unless it has only just been published: every birth makes the server ask, and every connection publishes.
        """
        attempts = self._attempts.get(task)
        if attempts is not None and self._clock.monotonic() - attempts.published >= UNHEARD_S:
            attempts.due = 0.0

    def advance(self) -> None:
        """Publish the next due row when nothing is in flight."""
        if self._in_flight is not None or not self._session.connected:
            return
        now = self._clock.monotonic()
        for row in self._outbox.rows:
            attempts = self._attempts.setdefault(row.task, _Attempts())
            if attempts.due <= now and self._fits(row):
                self._publish(row, attempts, now)
                return

    def _fits(self, row: Row) -> bool:
        if self._largest_packet is None or row.size_bytes + PACKET_OVERHEAD_BYTES <= self._largest_packet:
            return True
        if row.task not in self._refused_sizes:
            self._refused_sizes.add(row.task)
            LOG.error(
                "%s %d has %d bytes, the broker takes packets of at most %d; it is kept. Raise the broker's limit "
                "or choose a smaller encoding",
                row.leaf, row.seq, row.size_bytes, self._largest_packet,
            )  # fmt: skip
        return False

    def _publish(self, row: Row, attempts: _Attempts, now: float) -> None:
        factor = min(2**attempts.count, LARGEST_BACK_OFF) * self._random.uniform(0.75, 1.25)
        attempts.due = now + self._settings.retry_s * factor
        try:
            payload = self._outbox.freeze(row.task)
        except StoreError as error:
            LOG.error("%s", error)
            return
        ticket = self._session.publish("update" if row.leaf == "update" else "result", payload, qos=1)
        if ticket is None:
            attempts.due = now
            return
        if attempts.count:
            LOG.info("%s %d published again: no receipt yet", row.leaf, row.seq)
        attempts.count += 1
        attempts.published = now
        self._in_flight = (ticket, row)
