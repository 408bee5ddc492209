"""When the model is evaluated, centrally and by the devices, and whether the scores say that it is time to stop."""

import logging
import math
import threading
import time
from collections.abc import Callable

from server.early_stop import EarlyStopping
from server.evaluation import Evaluator
from server.federated_evaluation import FederatedEvaluation
from server.history import AsyncHistory
from server.model import GlobalModel

LOG = logging.getLogger("pollen.server.evaluation")

LAST_EVALUATION_S = 10.0  # how long a server that was told to stop waits for one
WAIT_S = 0.5


class EvaluationSchedule:
    """Both kinds of evaluation beside the merge loop, in whose thread it is called; scores go into `history`.

    Central ones follow one another at least every `interval_s` while the model changes. federated: None for none.
    """

    def __init__(
        self,
        history: AsyncHistory,
        evaluator: Evaluator | None = None,
        *,
        interval_s: float = 5.0,
        federated: FederatedEvaluation | None = None,
        early_stopping: EarlyStopping | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._evaluator = evaluator
        self._interval_s = interval_s
        self._early_stopping = early_stopping
        self._clock = clock
        self._at = -float("inf")
        self._version = -1
        self.federated = federated
        self.stop_reason = ""  # why to stop, once the evaluations say so

    def take_over(self, interval_s: float) -> None:
        """Evaluate centrally every `interval_s` seconds from now on."""
        self._interval_s = interval_s

    def central(self, model: GlobalModel) -> None:
        """Take what the evaluator has finished; give it the current version when it is idle and its time has come."""
        self._take()
        now = self._clock()
        if now - self._at >= self._interval_s:
            self._at = now
            self._start(model)

    def last(self, model: GlobalModel, beat: Callable[[], None], stop: threading.Event) -> None:
        """Close the devices' round, and evaluate the last version, once `stop` is set only as far as
        `LAST_EVALUATION_S` allow; calls `beat` meanwhile."""
        self._close_federated()
        deadline = math.inf
        for _ in range(2):  # one may be running; then comes the last version
            self._take()
            self._start(model)
            while self._evaluator is not None and self._evaluator.busy and self._clock() < deadline:
                beat()
                self._evaluator.finish(WAIT_S)
                if stop.is_set():
                    deadline = min(deadline, self._clock() + LAST_EVALUATION_S)
        self._take()
        if self._evaluator is not None and self._evaluator.busy:
            LOG.warning("version %d was not evaluated: it takes too long for a server that shall stop", model.version)

    def by_devices(self) -> bool:
        """Close and record the devices' round when it is over; whether it was, so that all of them may train."""
        if self.federated is None or not self.federated.is_over():
            return False
        self._close_federated()
        return True

    def _close_federated(self) -> None:
        score = self.federated.close() if self.federated is not None else None
        if score is None:
            return
        loss, metrics = score.loss, score.metrics
        LOG.info("version %d on %d devices: loss %.4f %s", score.version, score.devices, loss, dict(metrics))
        self._history.add_federated_evaluation(score.version, loss, metrics, score.devices, score.samples)
        if self._early_stopping is not None:
            self.stop_reason = self.stop_reason or self._early_stopping.observe(
                "federated", score.version, loss, metrics
            )

    def _take(self) -> None:
        for version, (loss, metrics) in self._evaluator.results() if self._evaluator is not None else ():
            LOG.info("version %d: loss %.4f %s", version, loss, metrics)
            self._history.add_evaluation(version, loss, metrics)
            if self._early_stopping is not None:
                self.stop_reason = self.stop_reason or self._early_stopping.observe("central", version, loss, metrics)

    def _start(self, model: GlobalModel) -> None:
        if self._evaluator is not None and not self._evaluator.busy and model.version != self._version:
            self._version = model.version
            self._evaluator.start(model.version, model.weights.copy())
