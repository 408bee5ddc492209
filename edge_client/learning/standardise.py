"""Running per-channel statistics: every channel comes to about mean 0 and variance 1."""

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

CLIP: Final = 10.0
_SMALLEST_DEVIATION: Final = 1e-6


class Standardiser:
    """Mean and variance of each of `channels` channels, updated sample by sample.

    Exact (population variance, Chan et al. 1979) for the first `memory` samples; from then on each new sample weighs
    1 / memory, so that old ones fade exponentially and a drifting sensor is followed.
    """

    def __init__(self, channels: int, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._mean = np.zeros(channels)
        self._variance = np.zeros(channels)

    @property
    def count(self) -> int:
        """Samples seen, at most `memory`."""
        return self._count

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Per channel, [C]."""
        return self._mean.copy()

    @property
    def deviation(self) -> npt.NDArray[np.float64]:
        """Standard deviation per channel, [C]."""
        return np.sqrt(self._variance)

    def update(self, values: Floats) -> None:
        """Learn from `values` [k, C], finite."""
        before = min(self._count, max(self._memory - len(values), 0))
        total = before + len(values)
        share = len(values) / total
        mean = values.mean(axis=0, dtype=np.float64)
        variance = values.var(axis=0, dtype=np.float64)
        difference = mean - self._mean
        self._mean = self._mean + share * difference
        # The pooled variance of two groups: within each, and between their means.
        self._variance = (1 - share) * self._variance + share * variance + share * (1 - share) * difference**2
        self._count = min(total, self._memory)

    def transform(self, values: Floats) -> Floats:
        """(`values` [k, C] - mean) / deviation, clipped to ±10; 0 where a channel never moved."""
        deviation = np.sqrt(self._variance)
        # Relative to the mean too: a constant 1e6 has rounding noise far above an absolute bound.
        moves = deviation > _SMALLEST_DEVIATION * np.maximum(1.0, np.abs(self._mean))
        scaled = (values - self._mean) / np.where(moves, deviation, 1.0)
        return np.where(moves, np.clip(scaled, -CLIP, CLIP), 0.0).astype(np.float32)
