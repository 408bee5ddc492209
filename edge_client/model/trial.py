"""A new bundle on trial: whether the device does much worse with it than before."""

import math
from typing import Final

from edge_client.learning.prequential import FADE, Prequential
from edge_client.settings import Trust

START: Final = 10  # scored windows that show where a bundle begins
DIVERGED: Final = 2  # trainings in a row
UNTRAINED: Final = 10  # times trial_samples: a device that gets no task can't judge a model it doesn't train
LEAST: Final = 0.05  # of a standard deviation, or share of wrong classes; on a constant stream all errors were 0
HOPELESS: Final = 990.0  # the learner counts a prediction that is no number as an error of 1,000


class Trial:
    """Watches the prequential error of the bundle in use; `before` was that of the last one, None if not comparable.

    A model may begin with weights that know nothing yet, so it is compared with what was before only at the end, after
    `trust.trial_samples` scored windows and a training; until then it must not get much worse than it began.
    """

    def __init__(self, settings: Trust, digest: bytes, before: float | None) -> None:
        self._settings = settings
        self.before = before
        self._begun: tuple[int, float] | None = None
        self._half = 0, math.nan
        self._start = math.nan
        self._diverged = 0
        self._trained = False
        self.digest = digest
        self.over = False

    def trained(self) -> None:
        """A training has succeeded."""
        self._trained = True
        self._diverged = 0

    def diverged(self) -> str:
        """A training has given no numbers; returns why the bundle can't stay, "" when it can."""
        self._diverged += 1
        if self._trained or self._diverged < DIVERGED:
            return ""
        return f"its first {DIVERGED} trainings diverged"

    def judge(self, prequential: Prequential) -> str:
        """Look at the error now; returns why the bundle can't stay, "" when it can. `over`: it may for good."""
        now = prequential.count, prequential.error
        if self._begun is None or now[0] < self._begun[0]:
            self._begun = self._half = now
        windows, error = _since(*self._begun, prequential)
        if windows < START:
            return ""
        if math.isnan(self._start):
            self._start = error
        factor, known = self._settings.explodes_at, max(self.before or 0.0, prequential.baseline, LEAST)
        told = f"above {factor:g} times the {known:.4g} of the model before or the baseline, after {windows} windows"
        if error > factor * known and (error > factor * self._start or error >= HOPELESS):
            return f"its error {error:.4g} is {told}"
        samples = self._settings.trial_samples
        # The weights it began with are no part of how it ends.
        _, lately = _since(*self._half, prequential)
        if windows >= samples and self._trained and lately > factor * known:
            return f"its error {lately:.4g} is {told} and a training"
        if now[0] - self._half[0] >= samples / 2:
            self._half = now
        self.over = windows >= samples and (self._trained or windows >= UNTRAINED * samples)
        return ""


def _since(count: int, error: float, now: Prequential) -> tuple[int, float]:
    """(number, faded mean error) of the windows scored since there were `count` with the mean `error`."""
    windows = now.count - count
    if windows == 0:
        return 0, math.nan
    # A faded mean is sum / weight, where both fade by the same factor with each window.
    left = 0.0 if count == 0 else FADE**windows * error * _weight(count)
    return windows, (now.error * _weight(now.count) - left) / _weight(windows)


def _weight(count: int) -> float:
    return (1.0 - FADE**count) / (1.0 - FADE)
