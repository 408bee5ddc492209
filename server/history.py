"""AsyncHistory: Flower's History with time stamps and every merge; written as JSON lines while it runs."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from flwr.server.history import History

from server.history_file import LineFile, line

FILE_LIMIT_BYTES: Final = 256 * 2**20
REJECTIONS_PER_S: Final = 10  # lines a device; a device that floods the server must not flood its disk
BURSTS_KEPT: Final = 1024  # devices whose rejections are counted
EVALUATIONS_KEPT: Final = 10_000  # at most; each may hold scores of a hundred classes

Timed = list[tuple[float, Any]]  # (seconds since the history began, value)


@dataclass(frozen=True, slots=True)
class Merge:
    """One merged update. `version` is the model's afterwards, `staleness` in merges, `delta_norm` its L2 norm,
    `size_bytes` of its payload, `elapsed_s` seconds since the history began. `loss_before` and `loss_after`: the mean
    training loss the device saw before and after its steps, None when it told none; `metrics`: what else it told.
    `turnaround_s`: seconds between giving the task and deciding its update, by the server's clock; `base`: the version
    the update was trained from."""

    elapsed_s: float
    version: int
    device: str
    staleness: int
    samples: int
    steps: int
    weight: float
    delta_norm: float
    size_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    loss_before: float | None = None
    loss_after: float | None = None
    turnaround_s: float = 0.0
    base: int = 0


class Rejection(NamedTuple):
    """An update that was refused; `kind` is what it is counted under."""

    elapsed_s: float
    device: str
    reason: str
    kind: str


class Evaluation(NamedTuple):
    """A score of `version`: central, or federated, as told by `devices` devices on `samples` samples of their own."""

    elapsed_s: float
    version: int
    loss: float
    metrics: dict[str, Any]
    devices: int = 0
    samples: int = 0


class Event(NamedTuple):
    """A start, a stop with its reason, a publication, a privacy budget or what else happened at `version`."""

    elapsed_s: float
    event: str
    version: int
    details: Mapping[str, Any]


@dataclass(slots=True)
class _Burst:
    """The rejections of a device in the second from `started` on; `suppressed` have no line, `last` is the newest."""

    started: float
    lines: int = 0
    suppressed: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class AsyncHistory(History):
    """Flower's History (its "rounds" are versions here), plus what happened when: `merges`, `rejections`,
    `evaluations`, `federated_evaluations`, `events`, and flower-async's `…_async` views of them.

    Time is `elapsed_s`: seconds since this history began, by the server's monotonic clock; no device's clock is asked.
    Keeps the newest `keep` of each in memory (of evaluations at most 10,000). With `path`, every event is also appended
    to that file as a JSON line with `time` (Unix seconds) beside it, numbers that are not finite as null; a file that
    would grow beyond `limit_bytes` becomes `<path>.1` in place of the one before. Of a device's rejections, ten a
    second get a line; `suppressed` in the next line counts the others. A disk that refuses is logged once and costs the
    lines, never the run.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000, limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        super().__init__()
        self._keep_scores = min(keep, EVALUATIONS_KEPT)
        self.merges: deque[Merge] = deque(maxlen=keep)
        self.rejections: deque[Rejection] = deque(maxlen=keep)
        self.evaluations: deque[Evaluation] = deque(maxlen=self._keep_scores)
        self.federated_evaluations: deque[Evaluation] = deque(maxlen=self._keep_scores)
        self.events: deque[Event] = deque(maxlen=keep)
        self.merged = 0
        self._bursts: dict[str, _Burst] = {}  # the longest silent first
        self._file = None if path is None else LineFile(path, limit_bytes)
        self._started = time.monotonic()

    def __repr__(self) -> str:
        """A line or three: Flower logs it after a run, and its own History would list every score there ever was."""
        devices = len({merge.device for merge in self.merges})
        told = [f"{self.merged} updates of {devices} devices merged, {len(self.rejections)} refused"]
        for name, evaluations in (("central", self.evaluations), ("federated", self.federated_evaluations)):
            for last in list(evaluations)[-1:]:
                scores = {"loss": last.loss, **last.metrics}
                numbers = ", ".join(f"{n} {value:.4g}" for n, value in scores.items() if isinstance(value, int | float))
                told.append(f"{name} evaluation of version {last.version}: {numbers}")
        return "\n".join(told)

    @property
    def lines_lost(self) -> int:
        """How many lines a disk that refused has cost."""
        return 0 if self._file is None else self._file.lost

    def elapsed_s(self) -> float:
        """Seconds since this history began."""
        return time.monotonic() - self._started

    def add_merges(self, merges: list[Merge]) -> None:
        """Record merged updates, in the order they were merged."""
        self.merges.extend(merges)
        self.merged += len(merges)
        self._write([{"event": "merge", **asdict(merge)} for merge in merges])

    def add_rejection(self, device: str, reason: str, kind: str = "other") -> bool:
        """Record that an update of `device` was refused; whether it is worth a line: ten a second of a device are."""
        rejection = Rejection(self.elapsed_s(), device, reason, kind)
        self.rejections.append(rejection)
        burst = self._bursts.pop(device, None) or _Burst(rejection.elapsed_s)
        if rejection.elapsed_s - burst.started >= 1.0:
            burst.started, burst.lines = rejection.elapsed_s, 0
        self._bursts[device] = burst
        burst.last = {"event": "rejection", **rejection._asdict()}
        told = burst.lines < REJECTIONS_PER_S
        if not told:
            burst.suppressed += 1
        else:
            burst.lines += 1
            self._write([{**burst.last, "suppressed": burst.suppressed}])
            burst.suppressed = 0
        while len(self._bursts) > BURSTS_KEPT:
            self._end_burst(next(iter(self._bursts)))
        return told

    def add_evaluation(self, version: int, loss: float, metrics: Mapping[str, Any]) -> None:
        """Record a central evaluation of `version`."""
        evaluation = Evaluation(self.elapsed_s(), version, loss, dict(metrics))
        self.evaluations.append(evaluation)
        self.add_loss_centralized(version, loss)
        self.add_metrics_centralized(version, evaluation.metrics)
        self._forget(self.losses_centralized, self.metrics_centralized)
        self._write([{"event": "evaluation", **_scores(evaluation)}])

    def add_federated_evaluation(
        self, version: int, loss: float, metrics: Mapping[str, Any], devices: int, samples: int
    ) -> None:
        """Record an evaluation of `version` by `devices` devices on their own data, aggregated over `samples`."""
        evaluation = Evaluation(self.elapsed_s(), version, loss, dict(metrics), devices, samples)
        self.federated_evaluations.append(evaluation)
        self.add_loss_distributed(version, loss)
        self.add_metrics_distributed(version, evaluation.metrics)
        self._forget(self.losses_distributed, self.metrics_distributed)
        entry = {"event": "federated_evaluation", **_scores(evaluation), "devices": devices, "samples": samples}
        self._write([entry])

    def add_privacy(self, version: int, epsilon: float, delta: float | None = None) -> None:
        """Record that the model at `version` has cost its most exposed device (`epsilon`, `delta`) of privacy."""
        self.add_event("privacy", version, epsilon=epsilon, delta=delta)

    def add_event(self, event: str, version: int, **details: Any) -> None:
        """Record a start, a stop (`reason=`), a publication (`size_bytes=` of the snapshot) or the like at `version`.

        `details` are JSON's values; they must not be called `time` or `elapsed_s`.
        """
        happened = Event(self.elapsed_s(), event, version, details)
        self.events.append(happened)
        self._write([{"event": event, "elapsed_s": happened.elapsed_s, "version": version, **details}])

    @property
    def losses_centralized_async(self) -> Timed:
        """flower-async's: [(elapsed_s, loss)] of the central evaluations in memory."""
        return [(evaluation.elapsed_s, evaluation.loss) for evaluation in self.evaluations]

    @property
    def losses_distributed_async(self) -> Timed:
        """[(elapsed_s, loss)] of the federated evaluations in memory."""
        return [(evaluation.elapsed_s, evaluation.loss) for evaluation in self.federated_evaluations]

    @property
    def metrics_centralized_async(self) -> dict[str, Timed]:
        """flower-async's: metric -> [(elapsed_s, value)] of the central evaluations in memory."""
        return _by_metric(self.evaluations)

    @property
    def metrics_distributed_async(self) -> dict[str, Timed]:
        """Metric -> [(elapsed_s, value)] of the federated evaluations in memory."""
        return _by_metric(self.federated_evaluations)

    @property
    def metrics_distributed_fit_async(self) -> dict[str, dict[str, Timed]]:
        """flower-async's: metric -> client -> [(elapsed_s, value)] of what came with the merged updates in memory.

        `loss_before`, `loss_after` and `sample_sizes` (flower-async's name) are among the metrics. Made when asked for.
        """
        metrics: defaultdict[str, defaultdict[str, Timed]] = defaultdict(lambda: defaultdict(list))
        for merge in self.merges:
            losses = {"loss_before": merge.loss_before, "loss_after": merge.loss_after}
            told = {name: loss for name, loss in losses.items() if loss is not None}
            for name, value in {"sample_sizes": merge.samples, **told, **merge.metrics}.items():
                metrics[name][merge.device].append((merge.elapsed_s, value))
        return {name: dict(clients) for name, clients in metrics.items()}

    def close(self) -> None:
        """Write what was suppressed last, and close the file."""
        for device in list(self._bursts):
            self._end_burst(device)
        if self._file is not None:
            self._file.close()

    def _forget(self, losses: list[tuple[int, float]], metrics: dict[str, list[tuple[int, Any]]]) -> None:
        """Flower's own are plain lists: keep the newest."""
        for values in (losses, *metrics.values()):
            del values[: -self._keep_scores]

    def _end_burst(self, device: str) -> None:
        """Forget a device's burst; its newest rejection without a line gets one, and counts the others."""
        burst = self._bursts.pop(device)
        if burst.suppressed:
            self._write([{**burst.last, "suppressed": burst.suppressed - 1}])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if self._file is None or not entries:
            return
        now = time.time()
        self._file.append("".join(line({"time": now, **entry}) for entry in entries).encode())


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "elapsed_s": evaluation.elapsed_s,
        "version": evaluation.version,
        "loss": evaluation.loss,
        "metrics": evaluation.metrics,
    }


def _by_metric(evaluations: deque[Evaluation]) -> dict[str, Timed]:
    metrics: defaultdict[str, Timed] = defaultdict(list)
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            metrics[name].append((evaluation.elapsed_s, value))
    return dict(metrics)
