"""The detectors on errors of any scale."""

import math
from typing import Any, Final

from edge_client.learning.drift.adwin import Adwin
from edge_client.learning.drift.page_hinkley import PageHinkley
from edge_client.learning.drift.state import count, number

WARM_UP: Final = 100  # errors that say what is usual
HEADROOM: Final = 4.0
MEMORY: Final = 1000
WORST: Final = 10.0  # a lone spike is no drift
TOLERANCE: Final = 0.1


class AdwinOfErrors:
    """ADWIN, whose bound is for values in [0, 1], on errors divided by four times the mean of the first 100.

    What is larger counts as 1. Classes' errors, 0 or 1, keep two values by that. Wherever the window is cut, the
    scale is no longer the right one, so both start anew; only a cut with a rise is drift.
    """

    def __init__(self, delta: float) -> None:
        self._delta = delta
        self._count, self._sum, self._window = self._new()

    def update(self, error: float) -> bool:
        """Add an `error`, finite and at least 0; whether the errors have risen."""
        if self._count < WARM_UP:
            self._sum += error
            self._count += self._sum > 0  # a scale of 0 says nothing
            return False
        rise = self._window.update(min(error * self._count / (HEADROOM * self._sum), 1.0))
        if rise:
            self._count, self._sum, self._window = self._new()
        return rise > 0

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"detector": "adwin", "count": self._count, "sum": self._sum, "window": self._window.state()}

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where it is no state of this detector."""
        _check(state, "adwin")
        seen, total = count(state, "count", WARM_UP), number(state, "sum")
        if total < 0 or (seen > 0) != (total > 0):
            raise ValueError("drift: a scale that is none")
        self._window.restore(state.get("window"))
        self._count, self._sum = seen, total

    def _new(self) -> tuple[int, float, Adwin]:
        return 0, 0.0, Adwin(self._delta)


class PageHinkleyOfErrors:
    """The Page-Hinkley test with threshold and tolerance in standard deviations of the errors.

    Mean and deviation are exact for the first 1000 errors and fade from then on, so that a slow change of level is
    followed. An error counts at most as ten deviations above the mean. Tolerance: 0.1 deviations; the sum doesn't
    fade. Nothing is found in the first 100 errors. After a drift all starts anew.
    """

    def __init__(self, threshold: float) -> None:
        self._test = PageHinkley(threshold, tolerance=TOLERANCE, fading=1.0, min_instances=WARM_UP + 1, memory=MEMORY)
        self._variance = 0.0

    def update(self, error: float) -> bool:
        """Add an `error`, finite and at least 0; whether the errors have risen."""
        if self._test.count >= WARM_UP and self._variance > 0:
            error = min(error, self._test.mean + WORST * math.sqrt(self._variance))
        share = 1 / (min(self._test.count, MEMORY - 1) + 1)
        self._variance = (1 - share) * (self._variance + share * (error - self._test.mean) ** 2)
        drift = self._test.update(error, math.sqrt(self._variance))
        if drift:
            self._variance = 0.0
        return drift

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"detector": "page-hinkley", "variance": self._variance, "test": self._test.state()}

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where it is no state of this detector."""
        _check(state, "page-hinkley")
        variance = number(state, "variance")
        if variance < 0:
            raise ValueError("drift: a variance below 0")
        self._test.restore(state.get("test"))
        self._variance = variance


def _check(state: Any, detector: str) -> None:
    if not isinstance(state, dict) or state.get("detector") != detector:
        raise ValueError(f"drift: no state of {detector}")
