"""Prequential evaluation: each example is first predicted and scored, only then learned from.

Errors are kept as exponentially faded means (Gama et al., "On evaluating stream learning algorithms", 2013), and as
means over the last days for those who look at a device, beside the same means of a baseline that learns nothing: for
forecasts and regression the last value seen, for classes the most frequent one so far. Labels come in runs, so "the
same class again" would be no honest baseline.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FADE: Final = 0.995  # half of the weight lies on the last 138 examples
FIRST: Final = 200  # examples in the average of the start
HOURS: Final = 48
_HOUR_S: Final = 3600.0

Errors = tuple[float, float]  # the model's and the baseline's


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

    def state(self) -> list[float]:
        """Plain values for `restore`."""
        return [self._sum, self._weight]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a `state`. Raises ValueError when it isn't one."""
        self._sum, self._weight = _positive(state, 2)


class HourlyErrors:
    """The mean errors of the last 48 hours in which the device ran, by the hour. Memory: 48 times three numbers."""

    def __init__(self) -> None:
        self._hours = [[0.0, 0.0, 0.0] for _ in range(HOURS)]  # examples, sums of errors; the newest hour last
        self._into = 0.0  # seconds into the newest hour
        self._newest: float | None = None

    def add(self, error: float, baseline: float, now: float) -> None:
        """Count one example's errors at the time `now`, monotonic seconds."""
        self._go_on(now)
        hour = self._hours[-1]
        hour[0] += 1.0
        hour[1] += error
        hour[2] += baseline

    @property
    def today(self) -> Errors:
        """The mean errors of the newest 24 hours, the current one included; NaN without examples."""
        return _mean(self._hours[HOURS // 2 :])

    @property
    def yesterday(self) -> Errors:
        """The mean errors of the 24 hours before; NaN without examples."""
        return _mean(self._hours[: HOURS // 2])

    def state(self) -> list[float]:
        """Plain values for `restore`."""
        return [self._into, *(number for hour in self._hours for number in hour)]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a `state`; the time in between isn't counted. Raises ValueError when it isn't one."""
        self._into, *numbers = _positive(state, 1 + 3 * HOURS)
        self._hours = [numbers[3 * hour : 3 * hour + 3] for hour in range(HOURS)]
        self._newest = None

    def _go_on(self, now: float) -> None:
        newest = now if self._newest is None else max(now, self._newest)  # late labels are of earlier times
        self._into += 0.0 if self._newest is None else newest - self._newest
        self._newest = newest
        over = int(self._into // _HOUR_S)
        self._into -= over * _HOUR_S
        if over:
            self._hours = (self._hours + [[0.0, 0.0, 0.0] for _ in range(min(over, HOURS))])[-HOURS:]


class Prequential:
    """The error of the model and of the baseline over the stream. Errors must be finite."""

    def __init__(self) -> None:
        self.count = 0
        self.hours = HourlyErrors()
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

    def add(self, error: float, baseline: float, now: float = 0.0) -> None:
        """Count one example's errors; `now`: monotonic seconds when its truth came."""
        if self.count < FIRST:
            self._first += error
            self._first_baseline += baseline
        self.count += 1
        self._model.add(error)
        self._baseline.add(baseline)
        self.hours.add(error, baseline, now)

    def state(self) -> dict[str, Any]:
        """Plain values for `restore`."""
        return {
            "count": self.count,
            "first": [self._first, self._first_baseline],
            "model": self._model.state(),
            "baseline": self._baseline.state(),
            "hours": self.hours.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises ValueError when it isn't one; this object is then of no use."""
        count = state["count"]
        if not isinstance(count, int) or not 0 <= count < 2**63:
            raise ValueError("count is no number of examples")
        self.count = count
        self._first, self._first_baseline = _positive(state["first"], 2)
        self._model.restore(state["model"])
        self._baseline.restore(state["baseline"])
        self.hours.restore(state["hours"])


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

    def state(self) -> list[int]:
        """Plain values for `restore`."""
        counts: list[int] = self._counts.tolist()
        return counts

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a `state`. Raises ValueError when it isn't one of as many classes."""
        counts = _positive(state, len(self._counts))
        if max(counts) >= 2.0**63:
            raise ValueError("a count is too large")
        self._counts = np.array([int(count) for count in counts], np.int64)


class LastTarget:
    """The last target seen; None before the first."""

    def __init__(self) -> None:
        self.guess: npt.NDArray[np.float32] | None = None

    def add(self, target: npt.NDArray[np.float32]) -> None:
        """Remember a target."""
        self.guess = target


def _mean(hours: Sequence[Sequence[float]]) -> Errors:
    count = sum(hour[0] for hour in hours)
    if not count:
        return float("nan"), float("nan")
    return sum(hour[1] for hour in hours) / count, sum(hour[2] for hour in hours) / count


def _positive(values: object, count: int) -> list[float]:
    """The list of `count` finite numbers >= 0 that `values` must be; raises ValueError."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != count:
        raise ValueError(f"expected {count} numbers")
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in values):
        raise ValueError("a number is missing, negative or not finite")
    return [float(value) for value in values]
