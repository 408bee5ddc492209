"""The server's metrics for Prometheus. By model, never by device: ten thousand devices would be as many time series of
each metric, which Prometheus keeps for ever; a device's numbers are in /api/devices."""

import math
from collections.abc import Callable
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from pollen import __version__
from server.guard import Kind
from server.history import Merge

STALENESS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
WEIGHT: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 2.0)
BYTES: Final = tuple(float(2**power) for power in range(8, 27, 2))
SECONDS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """What is counted as it happens; `registry` also has what is read when Prometheus asks."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._merges = Counter("pollen_server_merges", "Updates merged.", ["model"], registry=registry)
        self._rejections = Counter(
            "pollen_server_rejections", "Updates refused, by kind of reason.", ["model", "kind"], registry=registry
        )
        self._receipts = Counter("pollen_server_receipts", "Receipts sent.", ["model"], registry=registry)
        self._staleness = Histogram(
            "pollen_server_update_staleness_merges",
            "Staleness of merged updates, in merges.",
            ["model"],
            buckets=STALENESS,
            registry=registry,
        )
        self._weight = Histogram(
            "pollen_server_update_weight", "Weight of merged updates.", ["model"], buckets=WEIGHT, registry=registry
        )
        self._bytes = Histogram(
            "pollen_server_update_bytes", "Size of merged updates.", ["model"], buckets=BYTES, registry=registry
        )
        self._commit = Histogram(
            "pollen_server_commit_seconds", "Transactions of the state store.", ["model"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._merge = Histogram(
            "pollen_server_merge_seconds", "Deciding and merging one update.", ["model"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._loss = Gauge(
            "pollen_server_evaluation_loss", "The newest evaluation's loss.", ["model", "source"], registry=registry
        )
        self.vitals_refused = Counter(
            "pollen_server_vitals_refused", "Vitals that could not be read, or are too large.", registry=registry
        )
        Info("pollen_server_build", "The software.", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)

    def of(self, model: str) -> "ModelMetrics":
        """One model's. Its counters are there, at 0, before anything happens."""
        self._loss.labels(model, "central").set(math.nan)
        for kind in get_args(Kind):  # or rate() would miss a kind's first
            self._rejections.labels(model, kind)
        return ModelMetrics(
            merges=self._merges.labels(model),
            receipts=self._receipts.labels(model),
            staleness=self._staleness.labels(model),
            weight=self._weight.labels(model),
            size=self._bytes.labels(model),
            commit_seconds=self._commit.labels(model),
            merge_seconds=self._merge.labels(model),
            rejections=lambda kind: self._rejections.labels(model, kind),
            loss=lambda source: self._loss.labels(model, source),
        )


class ModelMetrics:
    """The metrics of one model."""

    def __init__(
        self,
        *,
        merges: Counter,
        receipts: Counter,
        staleness: Histogram,
        weight: Histogram,
        size: Histogram,
        commit_seconds: Histogram,
        merge_seconds: Histogram,
        rejections: Callable[[str], Counter],
        loss: Callable[[str], Gauge],
    ) -> None:
        self.receipts = receipts
        self.commit_seconds = commit_seconds
        self.merge_seconds = merge_seconds
        self._merges = merges
        self._staleness = staleness
        self._weight = weight
        self._size = size
        self._rejections = rejections
        self._loss = loss

    def merged(self, merge: Merge) -> None:
        """Count a merged update."""
        self._merges.inc()
        self._staleness.observe(merge.staleness)
        self._weight.observe(merge.weight)
        self._size.observe(merge.size_bytes)

    def rejected(self, kind: str) -> None:
        """Count a refused one; kinds are the server's own words, so there are few."""
        self._rejections(kind).inc()

    def evaluated(self, loss: float, *, federated: bool) -> None:
        """Note the newest loss."""
        self._loss("federated" if federated else "central").set(loss)
