"""What is known of one model for people to see, and whether its merge loop is alive."""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from server.devices import DeviceCounts
from server.history import Evaluation, Event, Merge
from server.model import GlobalModel
from server.watch import ModelWatch
from server.web.fleet_view import FleetView, never_raises
from server.web.metrics import ModelMetrics
from server.web.rings import Averages, Curve, PerMinute

POINTS: Final = 500
PLAIN: Final = (str, int, float, bool, type(None))


class ModelView(ModelWatch):
    """One model's numbers and curves; also tells the `fleet` and the `metrics`. Written by the merge loop's thread;
    anybody may read: fields are single values that are replaced whole, and the curves have a lock."""

    def __init__(self, name: str, rule: str, parameters: int, fleet: FleetView, metrics: ModelMetrics) -> None:
        self.name = name
        self.rule = rule
        self.parameters = parameters
        self.version = 0
        self.published_version: int | None = None
        self.merges = 0
        self.open_tasks = 0
        self.running = False
        self.failure = ""
        self._turned_at = -math.inf
        self._fleet = fleet
        self._metrics = metrics
        self._model: GlobalModel | None = None
        self._lock = threading.Lock()
        self._minute = PerMinute()
        self._began_at = time.monotonic()
        self._newest: Evaluation | None = None
        self._central = Curve(POINTS)
        self._federated = Curve(POINTS)
        self._updates = Averages(POINTS)

    # --- what the merge loop tells

    @never_raises
    def begun(self, model: GlobalModel, known: Iterable[DeviceCounts]) -> None:
        """See ModelWatch."""
        self._model = model
        self.version, self.parameters = model.version, int(model.weights.size)
        self._began_at = time.monotonic()
        known = list(known)
        self._fleet.restored(known)
        self.merges = sum(counts.merged for counts in known)
        self.turned(0)
        self.running = True

    def turned(self, open_tasks: int) -> None:
        """See ModelWatch."""
        self._turned_at = time.monotonic()
        self.open_tasks = open_tasks
        if self._model is not None:
            self.version = self._model.version

    def decided(self, seconds: float) -> None:
        """See ModelWatch."""
        self._metrics.merge_seconds.observe(seconds)

    def committed(self, seconds: float) -> None:
        """See ModelWatch."""
        self._metrics.commit_seconds.observe(seconds)

    def receipted(self, receipts: int) -> None:
        """See ModelWatch."""
        self._metrics.receipts.inc(receipts)

    @never_raises
    def merged(self, merges: Sequence[Merge]) -> None:
        """See ModelWatch."""
        if not merges:
            return
        self.merges += len(merges)
        self.version = max(self.version, merges[-1].version)
        now = time.time()
        with self._lock:
            self._minute.add(time.monotonic(), len(merges))
            for merge in merges:
                if merge.loss_before is not None and math.isfinite(merge.loss_before):
                    self._updates.add(now, merge.loss_before)
        for merge in merges:
            self._metrics.merged(merge)
        self._fleet.merged(self.name, merges)

    @never_raises
    def rejected(self, device: str, reason: str, kind: str, *, told: bool) -> None:
        """See ModelWatch."""
        self._metrics.rejected(kind)
        self._fleet.rejected(self.name, device, reason, kind, told=told)

    def published(self, version: int) -> None:
        """See ModelWatch."""
        self.published_version = version

    @never_raises
    def evaluated(self, evaluation: Evaluation, *, federated: bool) -> None:
        """See ModelWatch."""
        self.scored(time.time(), evaluation, federated=federated)
        self._metrics.evaluated(evaluation.loss, federated=federated)
        self._fleet.happened(
            "federated_evaluation" if federated else "evaluation",
            model=self.name,
            version=evaluation.version,
            loss=_finite(evaluation.loss),
        )

    def scored(self, at: float, evaluation: Evaluation, *, federated: bool) -> None:
        """Put a score of time `at` (Unix seconds) into the curves."""
        row: dict[str, object] = {
            "time": at,
            "version": evaluation.version,
            "loss": _finite(evaluation.loss),
            "metrics": _numbers(evaluation.metrics),
        }
        with self._lock:
            if federated:
                self._federated.add({**row, "devices": evaluation.devices, "samples": evaluation.samples})
            else:
                self._central.add(row)
                self._newest = evaluation

    def learned(self, at: float, loss_before: float) -> None:
        """Put an earlier update's loss into the curve."""
        with self._lock:
            self._updates.add(at, loss_before)

    @never_raises
    def happened(self, event: Event) -> None:
        """See ModelWatch."""
        self.version = max(self.version, event.version)
        details = {name: value for name, value in event.details.items() if isinstance(value, PLAIN)}
        self._fleet.happened(event.event, **{**details, "model": self.name, "version": event.version})

    @never_raises
    def ended(self, failure: str) -> None:
        """See ModelWatch."""
        self.failure = failure
        self.running = False

    # --- what is shown

    def silent_s(self) -> float:
        """Seconds since the merge loop has turned, 0 when none is running."""
        return max(0.0, time.monotonic() - self._turned_at) if self.running else 0.0

    def summary(self, error: float | None, baseline: float | None) -> dict[str, Any]:
        """The model as one entry of /api/fleet; `error` and `baseline`: the devices' mean."""
        now = time.monotonic()
        with self._lock:
            newest, rate = self._newest, self._minute.per_second(now, self._began_at)
        return {
            "name": self.name,
            "rule": self.rule,
            "version": self.version,
            "published_version": self.published_version,
            "merges": self.merges,
            "merges_per_s": round(rate, 3),
            "parameters": self.parameters,
            "open_tasks": self.open_tasks,
            "running": self.running,
            "loss": None if newest is None else _finite(newest.loss),
            "metrics": {} if newest is None else _numbers(newest.metrics),
            "error": error,
            "baseline": baseline,
        }

    def evaluations(self) -> dict[str, Any]:
        """The curves, each at most 500 points."""
        with self._lock:
            updates = [{"time": at, "loss": loss} for at, loss in self._updates.rows()]
            return {"central": self._central.rows(), "federated": self._federated.rows(), "updates": updates}


def _numbers(metrics: Any) -> dict[str, float]:
    return {
        str(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
