"""What is known of one device for people to see, in bounded memory."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pollen.messages import Birth
from server.history import Merge
from server.web.rings import Ring

MERGES_KEPT: Final = 200
TRENDS_KEPT: Final = 240
REJECTIONS_KEPT: Final = 50
REASON_KEPT: Final = 300  # characters
RECENT_S: Final = 600.0  # how long a rejection marks its device on the map

_HISTORY: Final = ("staleness", "weight", "delta_norm", "loss_before", "loss_after")
_TRENDS: Final = ("error", "baseline", "temperature_celsius")
# What devices call the numbers that are followed over time: see edge_client/report.py.
_NAMES: Final = {"error": "prequential_error", "baseline": "baseline_error"}


@dataclass(slots=True)
class DeviceRecord:
    """One device. Times are Unix seconds, None for never; `model` is that of its last merge, `base` what that update
    was trained from, `version` the model's when it was merged."""

    name: str
    online: bool = False
    last_seen: float | None = None
    birth: Birth | None = None
    updates: int = 0
    rejected: int = 0
    bytes: int = 0
    model: str | None = None
    base: int | None = None
    staleness: int | None = None
    version: int | None = None
    rejected_at: float | None = None
    vitals: Mapping[str, float] = field(default_factory=dict)
    vitals_at: float | None = None
    history: Ring | None = None
    trends: Ring | None = None
    rejections: deque[tuple[float, str, str]] | None = None

    def merged(self, at: float, model: str, merge: Merge) -> None:
        """Take a merged update."""
        self.last_seen = at
        self.updates += 1
        self.bytes += merge.size_bytes
        self.model, self.base, self.staleness, self.version = model, merge.base, merge.staleness, merge.version
        if self.history is None:
            self.history = Ring(MERGES_KEPT, *_HISTORY)
        self.history.add(at, merge.staleness, merge.weight, merge.delta_norm, merge.loss_before, merge.loss_after)

    def refused(self, at: float, kind: str, reason: str) -> None:
        """Take a rejection."""
        self.last_seen = self.rejected_at = at
        self.rejected += 1
        if self.rejections is None:
            self.rejections = deque(maxlen=REJECTIONS_KEPT)
        self.rejections.append((at, kind, reason[:REASON_KEPT]))

    def measured(self, at: float, values: Mapping[str, float]) -> None:
        """Take vitals."""
        self.last_seen = self.vitals_at = at
        self.vitals = values
        if self.trends is None:
            self.trends = Ring(TRENDS_KEPT, *_TRENDS)
        self.trends.add(at, *(self.vital(name) for name in _TRENDS))

    def vital(self, name: str) -> float | None:
        """The newest error, baseline or temperature_celsius."""
        return self.vitals.get(_NAMES.get(name, name))

    def behind(self, version: int | None) -> int | None:
        """Versions merged since its last update was, `version` being its model's now; None before its first."""
        return None if self.version is None or version is None else max(0, version - self.version)

    def recently_rejected(self, now: float) -> bool:
        """Whether an update was refused in the last ten minutes."""
        return self.rejected_at is not None and now - self.rejected_at < RECENT_S

    def row(self, version: int | None, *, blocked: bool) -> dict[str, Any]:
        """The device as one row of a table; see docs/server.md."""
        birth = self.birth
        return {
            "name": self.name,
            "online": self.online,
            "last_seen": self.last_seen,
            "models": [] if birth is None else list(birth.models),
            "software": None if birth is None else birth.software,
            "machine": None if birth is None else birth.machine,
            "clock": None if birth is None else birth.clock,
            "version": self.base,
            "staleness": self.staleness,
            "behind": self.behind(version),
            "updates": self.updates,
            "rejected": self.rejected,
            "bytes": self.bytes,
            "temperature_celsius": self.vital("temperature_celsius"),
            "error": self.vital("error"),
            "baseline": self.vital("baseline"),
            "blocked": blocked,
        }

    def page(self) -> dict[str, Any]:
        """What a page of its own shows beside its row."""
        empty_history, empty_trends = Ring(0, *_HISTORY), Ring(0, *_TRENDS)
        return {
            "birth": None if self.birth is None else _shown(self.birth),
            "vitals": dict(self.vitals),
            "vitals_at": self.vitals_at,
            "history": (self.history or empty_history).columns(),
            "trends": (self.trends or empty_trends).columns(),
            "rejections": [
                {"time": at, "kind": kind, "reason": reason} for at, kind, reason in reversed(self.rejections or ())
            ],
        }


def _shown(birth: Birth) -> dict[str, Any]:
    shown = {name: getattr(birth, name) for name in Birth.__slots__ if name != "session"}
    return {**shown, "boot": birth.session.boot.hex(), "connection": birth.session.connection}
