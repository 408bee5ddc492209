"""Running per-channel statistics: every channel comes to about mean 0 and variance 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

CLIP: Final = 10.0
WARM_UP: Final = 10  # samples the statistics need before they mean anything
_SMALLEST_DEVIATION: Final = 1e-6
_FIRST_MOVE: Final = 0.01  # what counts as a deviation of a channel that never moved
_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """The statistics of one moment: `mean` and `deviation`, float64 [C], deviation > 0. Never changes."""

    mean: Doubles
    deviation: Doubles

    def apply(self, values: Floats) -> Floats:
        """(`values` [..., C] - mean) / deviation, clipped to ±10."""
        scaled = values - self.mean
        scaled /= self.deviation
        np.maximum(scaled, -CLIP, out=scaled)
        np.minimum(scaled, CLIP, out=scaled)
        return scaled.astype(np.float32)

    def inverse(self, scaled: Floats) -> Floats:
        """The values, in the channels' own units, that `apply` takes to `scaled` [..., C]; finite for finite ones."""
        return np.clip(scaled * self.deviation + self.mean, -_LARGEST, _LARGEST).astype(np.float32)


class Standardiser:
    """Mean and variance of each of `channels` channels, updated sample by sample.

    Exact (population variance, Chan et al. 1979) for the first `memory` samples; from then on each new sample weighs
    1 / memory, so that old ones fade exponentially and a drifting sensor is followed.

    A value further than 10 deviations from the mean counts as one at 10 (winsorised; Tukey 1962), so that a spike of
    1e30 can't ruin the statistics: among n samples it makes the variance at most 1 + 100 / n times as large. A level
    that stays that far off is still reached, since then the variance grows by that factor with every sample. The
    first 10 samples are taken together, about their median.
    """

    def __init__(self, channels: int, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._mean = np.zeros(channels)
        self._variance = np.zeros(channels)
        self._start = np.zeros((0, channels))  # the first samples
        self._scaling: Scaling | None = None

    @property
    def count(self) -> int:
        """Samples seen, at most `memory`."""
        return self._count

    @property
    def mean(self) -> Doubles:
        """Per channel, [C]."""
        return self._mean.copy()

    @property
    def deviation(self) -> Doubles:
        """Standard deviation per channel, [C]."""
        return np.sqrt(self._variance)

    @property
    def scaling(self) -> Scaling:
        """The statistics as they are now. A channel that never moved has a deviation of a millionth of its mean."""
        if self._scaling is None:
            # Relative to the mean too: a constant 1e6 has rounding noise far above an absolute bound.
            least = _SMALLEST_DEVIATION * np.maximum(1.0, np.abs(self._mean))
            self._scaling = Scaling(self._mean, np.maximum(self.deviation, least))
        return self._scaling

    def update(self, values: Floats) -> None:
        """Learn from `values` [k, C], finite, k >= 1."""
        samples = values.astype(np.float64)
        if self._count < WARM_UP:
            self._start = np.concatenate([self._start, samples])
            samples, self._count = _without_outliers(self._start), 0
        else:
            differences = samples - self._mean
            if (differences * differences > CLIP * CLIP * self._variance).any():
                bound = _bound(self._mean, self.deviation)
                samples = self._mean + np.clip(differences, -bound, bound)
        self._merge(samples)
        if self._count >= WARM_UP:
            self._start = self._start[:0]

    def transform(self, values: Floats) -> Floats:
        """(`values` [k, C] - mean) / deviation, clipped to ±10; 0 where a channel never moved."""
        return self.scaling.apply(values)

    def shorten(self, samples: int) -> None:
        """What was seen so far counts as much as the newest `samples` only: the stream has changed."""
        self._count = min(self._count, max(samples, WARM_UP))

    def state(self) -> dict[str, Any]:
        """The statistics as plain values, for `restore`; those of less than 10 samples are left out."""
        ready = self._count >= WARM_UP
        return {
            "count": self._count if ready else 0,
            "mean": self._mean.tolist() if ready else [0.0] * len(self._mean),
            "variance": self._variance.tolist() if ready else [0.0] * len(self._mean),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises ValueError, and changes nothing, when it isn't one of as many channels."""
        try:
            count = int(state["count"])
            mean, variance = (np.asarray(state[name], np.float64) for name in ("mean", "variance"))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no state of a standardiser: {error}") from error
        shape = self._mean.shape
        if mean.shape != shape or variance.shape != shape or count < 0 or 0 < count < WARM_UP:
            raise ValueError(f"statistics of {count} samples of {mean.shape} channels, expected {shape}")
        if not (np.abs(mean) <= _LARGEST).all() or not ((variance >= 0) & (variance <= _LARGEST**2)).all():
            raise ValueError("statistics that are no numbers")
        self._count = min(count, self._memory)
        self._mean, self._variance, self._scaling = mean, variance, None
        self._start = self._start[:0]

    def _merge(self, samples: Doubles) -> None:
        """Pool the samples [k, C] with those before: the variance within each group, and between their means."""
        size = len(samples)
        before = min(self._count, max(self._memory - size, 0))
        share = size / (before + size)
        mean = samples[0] if size == 1 else samples.mean(axis=0)
        difference = mean - self._mean
        # In these forms of both nothing overflows, and a constant channel keeps its mean to the last digit.
        self._mean = self._mean + share * difference
        between = (share * (1 - share)) * (difference * difference)
        self._variance = (1 - share) * self._variance + between
        if size > 1:
            self._variance += share * samples.var(axis=0)
        self._count = min(before + size, self._memory)
        self._scaling = None


def _bound(centre: Doubles, deviation: Doubles) -> Doubles:
    """How far from `centre` [C] a value counts as it is.

    A channel that never moved gives no scale to go by; it may move by a tenth of its level, or by 0.1.
    """
    level = np.maximum(1.0, np.abs(centre))
    return CLIP * np.where(deviation > _SMALLEST_DEVIATION * level, deviation, _FIRST_MOVE * level)


def _without_outliers(samples: Doubles) -> Doubles:
    """The samples [k, C], clipped about their medians by the median absolute deviation (Hampel 1974)."""
    middle = len(samples) // 2
    median = np.sort(samples, axis=0)[middle]
    deviation = 1.4826 * np.sort(np.abs(samples - median), axis=0)[middle]
    bound = _bound(median, deviation)
    return np.clip(samples, median - bound, median + bound)
