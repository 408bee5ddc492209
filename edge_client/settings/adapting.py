"""Noticing that the stream has changed, and that a window is unlike those before it."""

from dataclasses import dataclass
from typing import Literal

from edge_client.settings.limits import at_least


@dataclass(frozen=True, slots=True)
class Drift:
    """`[drift]`: whether the prequential error's level has changed, and what follows.

    Only errors that rise are drift. `detector` "adwin" or "page-hinkley" (about twice as quick, but a lower error than
    its mean hides a rise for a while), "off" for none; `delta`: ADWIN's confidence; `threshold`: Page-Hinkley's, in
    standard deviations of the error. After a drift the next `trainings` trainings use the learning rate times
    `learning_rate_factor`, and the memory is cut to the `keep_samples` newest examples (0: kept).
    """

    detector: Literal["adwin", "page-hinkley", "off"] = "adwin"
    delta: float = 0.002
    threshold: float = 50.0
    trainings: int = 5
    learning_rate_factor: float = 2.0
    keep_samples: int = 256

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta = {self.delta} must be between 0 and 1")
        at_least(1.0, threshold=self.threshold)
        at_least(0.1, learning_rate_factor=self.learning_rate_factor)
        at_least(0, trainings=self.trainings, keep_samples=self.keep_samples)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """`[anomaly]`: whether windows are judged by their prediction's error.

    A window is an anomaly when the mean of the last `recent` errors is one that, under the errors of about the last
    `memory` windows, has a probability below `probability`, and stays one until that is above its square root. With a
    smaller `recent` single spikes are found too, and more false alarms come.
    """

    enabled: bool = False
    probability: float = 1e-5
    recent: int = 10
    memory: int = 2000

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 0.5:
            raise ValueError(f"probability = {self.probability} must be between 0 and 0.5")
        at_least(1, recent=self.recent)
        at_least(self.recent, memory=self.memory)
