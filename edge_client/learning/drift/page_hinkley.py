"""The Page-Hinkley test for a rise of the mean.

Page 1954, "Continuous inspection schemes", Biometrika 41; in the form of Gama et al. 2014, "A survey on concept drift
adaptation", section 3.2, with a fading sum.
"""

from typing import Any

from edge_client.learning.drift.state import count, number


class PageHinkley:
    """A rise of the mean of a stream: with x̄ the mean of the values so far,

        m ← α m + x - x̄ - δ,   M ← min(M, m),   and the mean has risen when m - M > λ

    δ = `tolerance`: rises that don't matter; λ = `threshold`; α = `fading`, 1 in Page's own test. Not before
    `min_instances` values; x̄ is exact for the first `memory`, from then on each new value weighs 1 / memory. After a
    detection it starts from nothing. Memory: four numbers.
    """

    def __init__(
        self,
        threshold: float = 50.0,
        *,
        tolerance: float = 0.005,
        fading: float = 0.9999,
        min_instances: int = 30,
        memory: int = 2**53,
    ) -> None:
        self._threshold = threshold
        self._tolerance = tolerance
        self._fading = fading
        self._fewest = min_instances
        self._memory = memory
        self._count = 0
        self._mean = self._sum = self._least = 0.0

    @property
    def count(self) -> int:
        """Values since the start, at most `memory`."""
        return self._count

    @property
    def mean(self) -> float:
        """Their mean."""
        return self._mean

    def update(self, value: float, unit: float = 1.0) -> bool:
        """Add a finite `value`; whether the mean has risen. Tolerance and threshold are multiples of `unit`."""
        self._count = min(self._count + 1, self._memory)
        self._mean += (value - self._mean) / self._count
        self._sum = self._fading * self._sum + value - self._mean - self._tolerance * unit
        self._least = self._sum if self._count == 1 else min(self._least, self._sum)
        if self._count < self._fewest or self._sum - self._least <= self._threshold * unit:
            return False
        self._count = 0
        self._mean = self._sum = self._least = 0.0
        return True

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain numbers."""
        return {"count": self._count, "mean": self._mean, "sum": self._sum, "least": self._least}

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where it is no state of this test."""
        found = count(state, "count", self._memory), number(state, "mean"), number(state, "sum"), number(state, "least")
        self._count, self._mean, self._sum, self._least = found
