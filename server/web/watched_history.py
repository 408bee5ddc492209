"""A history that also tells a ModelWatch of what it records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.history import AsyncHistory, Merge
from server.watch import ModelWatch


class WatchedHistory(AsyncHistory):
    """AsyncHistory, with `watch` told of each entry after it has been recorded."""

    def __init__(self, path: Path | None, keep: int, watch: ModelWatch) -> None:
        super().__init__(path, keep)
        self._watch = watch

    def add_merges(self, merges: list[Merge]) -> None:
        """Record merged updates."""
        super().add_merges(merges)
        self._watch.merged(merges)

    def add_rejection(self, device: str, reason: str, kind: str = "other") -> bool:
        """Record a refused update; whether it is worth a line."""
        told = super().add_rejection(device, reason, kind)
        self._watch.rejected(device, reason, kind, told=told)
        return told

    def add_evaluation(self, version: int, loss: float, metrics: Mapping[str, Any]) -> None:
        """Record a central evaluation."""
        super().add_evaluation(version, loss, metrics)
        self._watch.evaluated(self.evaluations[-1], federated=False)

    def add_federated_evaluation(
        self, version: int, loss: float, metrics: Mapping[str, Any], devices: int, samples: int
    ) -> None:
        """Record an evaluation by devices."""
        super().add_federated_evaluation(version, loss, metrics, devices, samples)
        self._watch.evaluated(self.federated_evaluations[-1], federated=True)

    def add_event(self, event: str, version: int, **details: Any) -> None:
        """Record what else happened."""
        super().add_event(event, version, **details)
        self._watch.happened(self.events[-1])
