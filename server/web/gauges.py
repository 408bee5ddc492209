"""What is read when Prometheus asks: lengths, versions, counts that somebody else keeps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Readings = list[tuple[tuple[str, ...], float]]  # values of the labels, and what is read


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric, its help, the names of its labels, and what reads it; `counts`: whether it only grows."""

    name: str
    text: str
    labels: Sequence[str]
    read: Callable[[], Readings]
    counts: bool = False


class Gauges(Collector):
    """A collector of `readings`; one that raises costs the whole answer, so that it is seen."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings: Final = list(readings)

    def collect(self) -> Iterator[Metric]:
        """Prometheus's question."""
        for reading in self._readings:
            family = (CounterMetricFamily if reading.counts else GaugeMetricFamily)(
                reading.name, reading.text, labels=reading.labels
            )
            for labels, value in reading.read():
                family.add_metric(labels, value)
            yield family

    def describe(self) -> list[Metric]:
        """Nothing: the names are known without reading."""
        return []
