"""Faster learning after a drift."""

from edge_client.settings import Drift


class AfterDrift:
    """The learning rate's factor of the trainings that follow a drift."""

    def __init__(self, settings: Drift) -> None:
        self._settings = settings
        self._known: float | None = None
        self._left = 0

    def factor(self, drifted_at: float | None) -> float:
        """The factor for the training that begins now; `drifted_at`: when the errors last drifted, if they have."""
        if drifted_at != self._known:
            self._known = drifted_at
            self._left = 0 if drifted_at is None else self._settings.trainings
        if not self._left:
            return 1.0
        self._left -= 1
        return self._settings.learning_rate_factor
