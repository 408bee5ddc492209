"""From the outbox to the broker and back: publish, publish again, and close a task at its receipt."""

import logging
import random
from dataclasses import dataclass
from typing import Final

from edge_client.clock import Clock
from edge_client.network.budget import REPLIES_SHARE, Budget, interface_of
from edge_client.network.outbox import Outbox, Row
from edge_client.network.session import PACKET_OVERHEAD_BYTES, MqttSession
from edge_client.settings import Upload
from pollen.errors import StoreError
from pollen.messages import Receipt

LOG = logging.getLogger(__name__)

UNHEARD_S: Final = 1.0  # first wait when no gateway was there; doubles, up to retry_s's own back-off
CROSSING_S: Final = 3.0  # in which a receipt comes that was under way when the server asked again
LARGEST_BACK_OFF: Final = 10  # times retry_s
METERED_VITALS_S: Final = 600.0


@dataclass(slots=True)
class _Attempts:
    """How often a row was published on this connection, when last, and when it is next due (monotonic seconds)."""

    count: int = 0
    published: float = float("-inf")
    due: float = 0.0


class Delivery:
    """Hands the outbox's rows to MQTT, one at a time, until their receipts come.

    Rows wait while the connection is over a metered interface, or `budget` has too little left for them; the update
    for the open task then grows on. `metered`: that interface's name, `update_bytes`: the size of the last update.
    """

    def __init__(self, outbox: Outbox, session: MqttSession, settings: Upload, budget: Budget, clock: Clock) -> None:
        self._outbox = outbox
        outbox.sends_now = self._sends_now
        self._session = session
        self._settings = settings
        self._budget = budget
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._attempts: dict[bytes, _Attempts] = {}
        self._in_flight: tuple[int, Row] | None = None
        self._largest_packet: int | None = None
        self._refused_sizes: set[bytes] = set()
        self._ready = False  # `connected` was called, so that it is known what the connection allows
        self._told = b""  # whose reply's waiting was logged last
        self.metered = ""
        self.update_bytes = 0
        self.merged = 0
        self.rejected = 0

    @property
    def oversize(self) -> int:
        """Rows larger than the broker's packet limit or the day's bytes, which can't be sent now."""
        return len(self._refused_sizes)

    @property
    def held(self) -> str:
        """Why nothing that waits is sent, although there is a connection; "": nothing holds it."""
        rows = self._outbox.rows
        if rows and self.metered:
            return f"{self.metered} is metered"
        if rows and not any(self._affordable(row.size_bytes) for row in rows):
            return f"{max(self._budget.left, 0)} of {self._budget.limit} bytes a day are left"
        return ""

    @property
    def vitals_s(self) -> float:
        """Least seconds between vitals."""
        return max(self._settings.vitals_s, METERED_VITALS_S if self.metered else 0.0)

    def connected(self, largest_packet: int | None, address: str) -> None:
        """A new connection, from the local `address`: every row is due at once."""
        names = self._settings.metered_interfaces
        interface = interface_of(address) if names else ""
        self.metered = interface if interface in names else ""
        if self.metered:
            LOG.info("connected over %s, which is metered: updates wait", self.metered)
        self._largest_packet = largest_packet
        self._ready = True
        self._in_flight = None
        self._attempts.clear()
        self._refused_sizes.clear()

    def lost(self) -> None:
        """The connection is gone, and with it what was in flight."""
        self._ready = False
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

        One that has only just been published gets a moment for its receipt: every birth makes the server ask, and every
        connection publishes. Longer would be too long, since nothing says that a gateway was among those who heard it.
        """
        attempts = self._attempts.get(task)
        if attempts is not None:
            attempts.due = min(attempts.due, attempts.published + CROSSING_S)

    def advance(self) -> None:
        """Publish the next due row when nothing is in flight."""
        if not self._is_open or self._in_flight is not None:
            return
        now = self._clock.monotonic()
        for row in self._outbox.rows:
            attempts = self._attempts.setdefault(row.task, _Attempts())
            if attempts.due > now or not self._fits(row):
                continue
            if self._affordable(row.size_bytes):
                self._publish(row, attempts, now)
                return
            if row.task != self._told:
                self._told = row.task
                LOG.info("%s %d waits: %s", row.leaf, row.seq, self.held)

    @property
    def _is_open(self) -> bool:
        return self._ready and not self.metered and self._session.connected

    def _sends_now(self, size_bytes: int) -> bool:
        """Whether a row of that size would be published at the next `advance`."""
        fits = self._largest_packet is None or size_bytes + PACKET_OVERHEAD_BYTES <= self._largest_packet
        return self._is_open and self._in_flight is None and fits and self._affordable(size_bytes)

    def _affordable(self, size_bytes: int) -> bool:
        return self._budget.allows(size_bytes, REPLIES_SHARE)

    def _fits(self, row: Row) -> bool:
        if self._largest_packet is not None and row.size_bytes + PACKET_OVERHEAD_BYTES > self._largest_packet:
            limit = f"the broker takes packets of at most {self._largest_packet}; it is kept. Raise the broker's limit"
        elif not self._budget.ever_allows(row.size_bytes, REPLIES_SHARE):
            limit = f"too many for a day of {self._budget.limit}; it is kept. Raise upload.bytes_per_day"
        else:
            return True
        if row.task not in self._refused_sizes:
            self._refused_sizes.add(row.task)
            LOG.error("%s %d has %d bytes, %s or choose a smaller encoding", row.leaf, row.seq, row.size_bytes, limit)
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
        self._budget.spend(len(payload))
        if row.leaf == "update":
            self.update_bytes = len(payload)
        attempts.count += 1
        attempts.published = now
        self._in_flight = (ticket, row)
