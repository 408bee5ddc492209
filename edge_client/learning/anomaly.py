"""Anomaly likelihood: how improbable the newest prediction errors are under those before.

Lavin & Ahmad 2015, "Evaluating real-time anomaly detection algorithms - the Numenta Anomaly Benchmark", section IV;
Ahmad, Lavin, Purdy & Agha 2017, "Unsupervised real-time anomaly detection for streaming data", section 4.2.
"""

import math
from collections import deque
from typing import Any, Final

from edge_client.learning.drift.state import count, number, numbers
from edge_client.settings import Anomaly

WARM_UP: Final = 100  # errors that say what is usual


class AnomalyScore:
    """The mean of the last r errors against a Gaussian of about the last `memory` ones:

        probability = Q((mean of r errors - μ) / (σ / √r)),   Q(z) = erfc(z / √2) / 2

    which is 1 - L of the papers, whose threshold so follows a model that learns and a stream that gets noisier. They
    divide by σ, as if the r errors were one; the mean of r errors has a deviation of σ / √r. μ and σ are exact for the
    first `memory` errors; from then on each new error weighs 1 / memory.

    An anomaly begins where the probability falls below `settings.probability`, and lasts until it is above the square
    root of that, so that one that flickers is one. Memory: r + 4 numbers.
    """

    def __init__(self, settings: Anomaly) -> None:
        self._below = settings.probability
        self._memory = settings.memory
        self._recent: deque[float] = deque(maxlen=settings.recent)
        self._warm_up = max(min(WARM_UP, settings.memory), settings.recent)
        self._count = 0
        self._mean = self._variance = 0.0
        self._within = False

    def update(self, error: float) -> tuple[float, bool]:
        """Add a finite `error`; the probability of recent errors this large, and whether this is an anomaly.

        Nothing is judged before there were 100 errors: (1.0, False).
        """
        self._recent.append(error)
        share = 1 / (min(self._count, self._memory - 1) + 1)
        difference = error - self._mean
        self._mean += share * difference
        self._variance = (1 - share) * (self._variance + share * difference**2)
        self._count = min(self._count + 1, self._memory)
        if self._count < self._warm_up:
            return 1.0, False
        probability = self._probability()
        self._within = probability < (math.sqrt(self._below) if self._within else self._below)
        return probability, self._within

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain numbers and a list."""
        level = {"count": self._count, "mean": self._mean, "variance": self._variance}
        return {**level, "recent": list(self._recent), "within": self._within}

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where it is no state of such a score."""
        seen, mean, variance = count(state, "count", self._memory), number(state, "mean"), number(state, "variance")
        recent, within, most = numbers(state.get("recent"), "recent"), state.get("within"), self._recent.maxlen or 0
        if variance < 0 or not isinstance(within, bool) or len(recent) != min(seen, most):
            raise ValueError("anomaly: a state that is none")
        self._count, self._mean, self._variance, self._within = seen, mean, variance, within
        self._recent = deque(recent, maxlen=most)

    def _probability(self) -> float:
        deviation = math.sqrt(self._variance / len(self._recent))
        above = math.fsum(self._recent) / len(self._recent) - self._mean
        if deviation == 0:
            return 0.5  # all errors were the same
        return math.erfc(above / deviation / math.sqrt(2)) / 2
