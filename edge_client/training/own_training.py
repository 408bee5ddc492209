"""Learning without a server: what the device does for its own predictions while there is no connection.

Nothing of it is promised or sent: no update, no samples counted, and neither what an open task has so far nor the
personal values on disk are touched. The next task begins from the newest snapshot, with the same examples.
"""

import logging
import random
from dataclasses import replace

from edge_client.clock import Clock
from edge_client.learning.learner import Learner
from edge_client.model.device_model import DeviceModel
from edge_client.settings import Training
from edge_client.training import trainer
from edge_client.training.after_drift import AfterDrift
from edge_client.training.held_run import HeldRun
from edge_client.training.policy import FREE, Policy
from edge_client.training.train_task import lacks
from pollen.errors import InterpreterError
from pollen.interpreter import TrainingGraph

LOG = logging.getLogger(__name__)


class OwnTraining:
    """Trains `model` by the settings alone, from the newest values it has. `trainings` counts those that succeeded."""

    def __init__(
        self,
        settings: Training,
        model: DeviceModel,
        policy: Policy,
        after_drift: AfterDrift,
        *,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self._settings = settings
        self._model = model
        self._policy = policy
        self._after_drift = after_drift
        self._clock = clock
        self._chance = chance
        self._connected_at = clock.monotonic()
        self._digest = b""
        self._total = 0
        self._run: HeldRun | None = None
        self.trainings = 0
        self.seconds = 0.0

    @property
    def waiting_for(self) -> str:
        """Why it isn't computing now; "" while it is."""
        if self._run is not None:
            return self._policy.hold.why
        missing = lacks({}, self._model, self._settings, self._total)
        return self._model.problem or missing or self._policy.hold.why

    def _begin(self, graph: TrainingGraph, learner: Learner) -> HeldRun:
        start = self._model.predicting
        run = trainer.TrainingRun(
            graph,
            learner.buffer,
            start=start,
            base=start,
            steps_done=self._model.personal.steps,
            plan=replace(trainer.plan(self._settings, {}), rate_factor=self._after_drift.factor(learner.drifted_at)),
            chance=self._chance,
            clock=self._clock,
        )
        return HeldRun(run, self._model, self._policy, self._clock)

    def is_due(self, *, connected: bool) -> bool:
        """Whether there has been no connection for long enough; to be asked all the time."""
        if connected:
            self._connected_at = self._clock.monotonic()
        return self._clock.monotonic() - self._connected_at >= self._settings.offline_s

    def stop(self) -> None:
        """Leave the training that runs."""
        if self._run is not None:
            self._run = None
            self._model.record.rest()

    def advance(self, seconds: float, trained_total: int) -> bool:
        """Compute for about `seconds`; whether there is more to do at once. The first `trained_total` examples were
        trained on for a task."""
        if self._digest != self._model.digest:
            self.stop()
            self._digest, self._total = self._model.digest, 0
        graph, learner = self._model.graph, self._model.learner
        if self._run is None:
            self._total = max(self._total, trained_total)
            if graph is None or learner is None or self.waiting_for:
                return False
            self._run = self._begin(graph, learner)
        try:
            if not self._run.advance(seconds):
                return self._policy.hold is FREE
        except trainer.TrainingDivergedError as error:
            LOG.warning("the device's own training: %s", error)
            self._model.own = None
            self._model.diverged()
        except InterpreterError as error:
            self._model.failed(str(error))
        result = self._run.result
        self.stop()
        if learner is not None:
            self._total = learner.buffer.total
        if result is not None:
            self._model.take_own(result.weights, result.state)
            self.trainings += 1
            self.seconds += result.seconds
            LOG.info("trained for itself: %d steps, loss %.4g -> %.4g",
                     result.steps, result.loss_before, result.loss_after)  # fmt: skip
        return False
