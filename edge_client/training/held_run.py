"""A training that goes on only while the policy lets it."""

from edge_client.clock import Clock
from edge_client.model.device_model import DeviceModel
from edge_client.training.policy import FREE, Policy
from edge_client.training.trainer import Trained, TrainingRun


class HeldRun:
    """`run` in slices; while `policy` holds it, it stays where it is.

    As long as it computes, `model` knows that a crash would be this training's.
    """

    def __init__(self, run: TrainingRun, model: DeviceModel, policy: Policy, clock: Clock) -> None:
        self.run = run
        self._model = model
        self._policy = policy
        self._clock = clock
        self._paused = False
        model.begin_training()

    @property
    def result(self) -> Trained | None:
        """What it gave, None until it is finished."""
        return self.run.result

    def advance(self, seconds: float) -> bool:
        """Compute for about `seconds`; whether it is finished. Raises TrainingDivergedError and InterpreterError."""
        if self._policy.hold is not FREE:
            self._paused = True
            self._model.record.rest()
            return False
        if self._paused:
            self._paused = False
            self._model.begin_training()
        started = self._clock.monotonic()
        try:
            return self.run.advance(seconds)
        finally:
            self._policy.spent(self._clock.monotonic() - started)
