"""Answers that are no update: evaluations, queries, and why a task can't be done."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Final

from edge_client.clock import Clock
from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.model.device_model import DeviceModel
from edge_client.network.fetching import Fetching
from edge_client.network.outbox import Outbox, Reply
from edge_client.training.policy import Policy
from edge_client.training.trainer import EvaluationRun
from pollen import messages
from pollen.bundle import Floats
from pollen.errors import InterpreterError, StoreError
from pollen.fields import MAX_TEXT
from pollen.interpreter import TrainingGraph
from pollen.messages import Result, Task

LOG = logging.getLogger(__name__)

EVALUATIONS: Final = 8  # evaluate tasks that may wait


class Results:
    """Puts results into the outbox; `evaluations` are the tasks that wait for one, the oldest first, `run` is that of
    the first while it is computed."""

    def __init__(self, outbox: Outbox, model: DeviceModel, fetching: Fetching, policy: Policy, clock: Clock) -> None:
        self._outbox = outbox
        self._model = model
        self._fetching = fetching
        self._policy = policy
        self._clock = clock
        self.evaluations: deque[Task] = deque()
        self.run: EvaluationRun | None = None

    def queue(self, task: Task) -> str:
        """Let an evaluate task wait; returns why it can't, "" when it does."""
        known = any(known.task == task.task for known in self.evaluations)
        if not known and len(self.evaluations) >= EVALUATIONS:
            return f"{EVALUATIONS} evaluations wait already"
        if not known:
            self.evaluations.append(task)
        return ""

    def begin(self, graph: TrainingGraph, buffer: ReplayBuffer, shared: Floats) -> None:
        """Start to evaluate the shared values [F] with this device's personal ones on the whole buffer."""
        self.run = EvaluationRun(graph, buffer, *self._model.join(shared), self._clock)

    def advance(self, run: EvaluationRun, seconds: float) -> bool:
        """Compute for about `seconds`; whether the evaluation is over, and answered."""
        started = self._clock.monotonic()
        error = ""
        try:
            if not run.advance(seconds):
                return False
        except InterpreterError as failure:
            error = str(failure)
            self._model.failed(error)
        finally:
            self._policy.spent(self._clock.monotonic() - started)
        self.put(self.evaluations[0], 0 if error else run.samples, {} if error else run.metrics, error)
        return True

    def put(self, task: Task, samples: int, metrics: Mapping[str, float], error: str = "") -> None:
        """Answer with `metrics`, or the `error` for which there are none."""
        if task in self.evaluations:
            self.evaluations.remove(task)
        payload = messages.encode(Result(task.task, samples, messages.finite_metrics(metrics), error[:MAX_TEXT]))
        try:
            self._outbox.put(Reply(task.task, "result", lambda _seq: payload, samples=samples))
        except StoreError as full:
            LOG.error("the result can't be kept: %s", full)
            self._fetching.rest()
