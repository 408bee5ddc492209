"""AsyncHistory: Flower's History with time stamps and every merge; written as JSON lines while it runs."""

import json
import logging
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from flwr.server.history import History

LOG = logging.getLogger("pollen.server.history")


@dataclass(frozen=True, slots=True)
class Merge:
    """One merged update. `version` is the model's afterwards, `staleness` in merges, `delta_norm` its L2 norm,
    `size_bytes` of its payload, `elapsed_s` seconds since the server started."""

    elapsed_s: float
    version: int
    device: str
    staleness: int
    samples: int
    steps: int
    weight: float
    delta_norm: float
    size_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)


class AsyncHistory(History):
    """Flower's History (its "rounds" are versions here), plus `merges`, `rejections` and time-stamped evaluations.

    Keeps the newest `keep` merges in memory. With `path`, every event is also appended to that file as a JSON line;
    a disk that refuses is logged once and costs the lines, never the run.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000) -> None:
        super().__init__()
        self.merges: deque[Merge] = deque(maxlen=keep)
        self.rejections: deque[tuple[float, str, str]] = deque(maxlen=keep)
        self.evaluations: list[tuple[float, int, float, dict[str, Any]]] = []
        self.merged = 0
        self._path = path
        self._file: TextIO | None = None
        self._failed = False
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since this history began."""
        return time.monotonic() - self._started

    def add_merges(self, merges: list[Merge]) -> None:
        """Record merged updates, in the order they were merged."""
        self.merges.extend(merges)
        self.merged += len(merges)
        self._write([{"event": "merge", **asdict(merge)} for merge in merges])

    def add_rejection(self, device: str, reason: str) -> None:
        """Record that an update of `device` was refused."""
        elapsed = self.elapsed_s()
        self.rejections.append((elapsed, device, reason))
        self._write([{"event": "rejection", "elapsed_s": elapsed, "device": device, "reason": reason}])

    def add_evaluation(self, version: int, loss: float, metrics: dict[str, Any]) -> None:
        """Record a central evaluation of `version`."""
        elapsed = self.elapsed_s()
        self.evaluations.append((elapsed, version, loss, metrics))
        self.add_loss_centralized(version, loss)
        self.add_metrics_centralized(version, metrics)
        entry = {"event": "evaluation", "elapsed_s": elapsed, "version": version, "loss": loss, "metrics": metrics}
        self._write([entry])

    def add_event(self, event: str, version: int) -> None:
        """Record a start, a stop or a publication at `version`."""
        self._write([{"event": event, "elapsed_s": self.elapsed_s(), "version": version}])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if self._path is None or not entries:
            return
        now = time.time()
        text = "".join(json.dumps({"time": now, **entry}) + "\n" for entry in entries)
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            if not self._failed:
                LOG.error("%s: history can't be written (%s); training goes on without it", self._path, error)
            self._failed = True
        else:
            self._failed = False
