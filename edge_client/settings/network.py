"""How updates and messages travel."""

from dataclasses import dataclass

from edge_client.settings.limits import at_least
from pollen.encoding import TOPK_SHARE, Encoding


@dataclass(frozen=True, slots=True)
class Upload:
    """`[upload]`: how updates travel.

    `encoding` of the delta (a task's config overrides it) and, for "topk", `topk_share`: the share of its numbers that
    are sent (a task's too); what an update doesn't carry goes along with the next. `bytes_per_day` (0: no limit): most
    bytes published in any 24 hours, but for births, which always go out; see `network.budget`. Over
    `metered_interfaces`, such as "wwan0", no update is sent. `retry_s`: seconds without a receipt until an update is
    published again, growing tenfold; `snapshot_limit_bytes`: largest payload accepted from the server;
    `outbox_limit_bytes`: largest size of the outbox's database; `drain_s`: seconds to wait for receipts at a stop;
    `vitals_s`: least seconds between vitals.
    """

    encoding: Encoding = "q8"
    topk_share: float = TOPK_SHARE
    bytes_per_day: int = 0
    metered_interfaces: tuple[str, ...] = ()
    retry_s: float = 60.0
    snapshot_limit_bytes: int = 64 * 2**20
    outbox_limit_bytes: int = 64 * 2**20
    drain_s: float = 10.0
    vitals_s: float = 10.0

    def __post_init__(self) -> None:
        at_least(0.1, retry_s=self.retry_s)
        at_least(1.0, vitals_s=self.vitals_s)
        at_least(0.0, drain_s=self.drain_s)
        at_least(0, bytes_per_day=self.bytes_per_day)
        if not 0.0 < self.topk_share <= 1.0:
            raise ValueError(f"topk_share = {self.topk_share} must be above 0, at most 1")
        at_least(2**16, snapshot_limit_bytes=self.snapshot_limit_bytes, outbox_limit_bytes=self.outbox_limit_bytes)


@dataclass(frozen=True, slots=True)
class Session:
    """`[session]`: the MQTT session.

    `expiry_s`: seconds the broker keeps it while the device is away; `will_delay_s`: seconds a lost connection may
    take to come back before the device counts as dead; a reconnect waits a random time up to a bound that grows from
    `reconnect_min_s` to `reconnect_max_s`.
    """

    expiry_s: int = 7 * 24 * 3600
    will_delay_s: int = 10
    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 120.0

    def __post_init__(self) -> None:
        at_least(0, expiry_s=self.expiry_s, will_delay_s=self.will_delay_s)
        at_least(0.01, reconnect_min_s=self.reconnect_min_s)
        at_least(self.reconnect_min_s, reconnect_max_s=self.reconnect_max_s)
        if max(self.expiry_s, self.will_delay_s) > 2**32 - 1:  # MQTT 5, sections 3.1.2.11.2 and 3.1.3.2.2
            raise ValueError("expiry_s and will_delay_s must be below 2^32")
