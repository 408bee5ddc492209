"""Concept drift: noticing that the model's error has become worse for good.

The detectors see the prequential errors one by one. Only a rise is drift: an error that falls is learning. Errors of
forecasts have any scale, so both detectors judge them beside those they saw before; `Adwin` and `PageHinkley`
themselves are those of the papers.
"""

from typing import Any, Protocol

from edge_client.learning.drift.errors import AdwinOfErrors, PageHinkleyOfErrors
from edge_client.settings import Drift


class DriftDetector(Protocol):
    """Watches a stream of errors, in bounded memory."""

    def update(self, error: float) -> bool:
        """Add an `error`, finite and at least 0; whether the errors have risen. It then starts anew."""

    def state(self) -> dict[str, Any]:
        """All it knows, as plain numbers, strings and lists."""

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where that is no state of this detector."""


def make(settings: Drift) -> DriftDetector | None:
    """The detector that `settings` names; None for "off"."""
    if settings.detector == "adwin":
        return AdwinOfErrors(settings.delta)
    if settings.detector == "page-hinkley":
        return PageHinkleyOfErrors(settings.threshold)
    return None
