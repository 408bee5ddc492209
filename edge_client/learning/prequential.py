"""Prequential evaluation: each example is first predicted and scored, only then learned from.

Errors are kept as exponentially faded means (Gama et al., "On evaluating stream learning algorithms", 2013), beside
the same means of a baseline that learns nothing: for forecasts and regression the last value seen, for classes the
most frequent one so far. Labels come in runs, so "the same class again" would be no honest baseline.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

FADE: Final = 0.995  # half of the weight lies on the last 138 examples
FIRST: Final = 200  # examples in the average of the start


class FadedMean:
    """sum fade^i e / sum fade^i over the errors e, newest first; NaN before the first."""

    def __init__(self, fade: float = FADE) -> None:
        self._fade = fade
        self._sum = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The mean now."""
        return self._sum / self._weight if self._weight else float("nan")

    def add(self, error: float) -> None:
        """Count one more error."""
        self._sum = self._fade * self._sum + error
        self._weight = self._fade * self._weight + 1.0


class Prequential:
    """The error of the model and of the baseline over the stream. Errors must be finite."""

    def __init__(self) -> None:
        self.count = 0
        self._model = FadedMean()
        self._baseline = FadedMean()
        self._first = 0.0
        self._first_baseline = 0.0

    @property
    def error(self) -> float:
        """The model's faded mean error; NaN before the first example."""
        return self._model.value

    @property
    def baseline(self) -> float:
        """The baseline's."""
        return self._baseline.value

    @property
    def error_first(self) -> float:
        """The model's mean error over the first examples, at most `FIRST`."""
        return self._first / min(self.count, FIRST) if self.count else float("nan")

    @property
    def baseline_first(self) -> float:
        """The baseline's over the same examples."""
        return self._first_baseline / min(self.count, FIRST) if self.count else float("nan")

    def add(self, error: float, baseline: float) -> None:
        """Count one example's errors."""
        if self.count < FIRST:
            self._first += error
            self._first_baseline += baseline
        self.count += 1
        self._model.add(error)
        self._baseline.add(baseline)


class MajorityClass:
    """The most frequent class so far, of a fixed number of classes; class 0 before the first, ties to the lowest."""

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros(classes, np.int64)

    @property
    def guess(self) -> int:
        """The class to predict."""
        return int(self._counts.argmax())

    def add(self, label: int) -> None:
        """Count one label."""
        self._counts[label] += 1


class LastTarget:
    """The last target seen; None before the first."""

    def __init__(self) -> None:
        self.guess: npt.NDArray[np.float32] | None = None

    def add(self, target: npt.NDArray[np.float32]) -> None:
        """Remember a target."""
        self.guess = target
