"""What the server asked for, done step by step: an explicit state machine that never blocks."""

import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from edge_client.clock import Clock
from edge_client.model.device_model import DeviceModel
from edge_client.network.fetching import Fetching
from edge_client.network.outbox import Outbox, Reply
from edge_client.network.session import MqttSession
from edge_client.settings import EdgeSettings
from edge_client.training import trainer
from edge_client.training.after_drift import AfterDrift
from edge_client.training.policy import FREE, Policy
from edge_client.training.train_task import OpenTrain, diverged, finish, lacks, resume, start
from pollen import messages
from pollen.errors import MessageError, PollenError, SignatureError, StoreError
from pollen.fields import MAX_TEXT
from pollen.messages import Receipt, Result, Task
from pollen.topics import ModelLeaf

LOG = logging.getLogger(__name__)

EVALUATIONS: Final = 8  # evaluate tasks that may wait
BUNDLE_FETCH_S: Final = 60.0
IDLE_S: Final = 0.25


class Worker:
    """Carries out train, evaluate and query tasks, one at a time. `metrics` gives the vitals that answer a query."""

    def __init__(
        self,
        settings: EdgeSettings,
        model: DeviceModel,
        outbox: Outbox,
        session: MqttSession,
        *,
        clock: Clock,
        metrics: Callable[[], dict[str, float]],
        policy: Policy | None = None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._fetching = Fetching(session, clock)
        self._policy = policy or Policy(settings.policy, clock)
        self._chance = random.Random()  # noqa: S311 - shuffles examples, keeps no secret
        self._after_drift = AfterDrift(settings.drift)
        self._train: OpenTrain | None = None
        self._evaluations: deque[Task] = deque()
        self._job: Task | None = None
        self._run: trainer.TrainingRun | None = None
        self._paused = False
        self._evaluation: trainer.EvaluationRun | None = None
        self._trained_total = 0
        self.updates_made = 0
        self.train_seconds = 0.0

    def restore(self) -> None:
        """Take up the train task that was open when the process ended, and the unsent update for it."""
        payload = self._outbox.open_task()
        if payload is None:
            return
        try:
            self._train = self._opened(messages.decode_task(payload))
        except PollenError as error:
            LOG.warning("the task kept on disk can't be used: %s", error)

    def accept(self, payload: bytes) -> bool:
        """A task came. Raises MessageError or StoreError. Whether its answer shall be published again."""
        task = messages.decode_task(payload)
        if self._outbox.was_answered(task.task):
            LOG.debug("task %s has its receipt already", task.task.hex()[:8])
            return False
        row = self._outbox.row(task.task)
        if row is not None and row.handed:
            return True
        if row is not None and task.kind != "train":
            return False  # done already, about to be sent
        if task.model != self._settings.model:
            self._refuse(task, f"this device learns {self._settings.model!r}, not {task.model!r}")
        elif task.kind == "query":
            self._answer(task, 0, self._metrics())
        elif task.kind == "evaluate":
            self._queue_evaluation(task)
        elif self._train is None or self._train.task.task != task.task:
            if self._train is not None and self._job is self._train.task:
                self._rest()  # the server has given that one up
            self._train = self._opened(task)
            self._fetching.hurry()
            self._outbox.remember_open_task(payload)
            LOG.debug("train task %s", task.task.hex()[:8])
        return False

    def closed(self, receipt: Receipt) -> None:
        """A task's receipt came: it is over. Raises StoreError."""
        if self._train is None or self._train.task.task != receipt.task:
            return
        if self._job is self._train.task:
            self._rest()
        self._train = None
        if receipt.outcome == "rejected":
            self._model.local = None  # nobody wants what was learned there
        self._outbox.remember_open_task(None)

    def fetched(self, leaf: ModelLeaf, payload: bytes) -> None:
        """What was fetched has come."""
        job = self._job
        if job is None or leaf != self._fetching.leaf:
            return
        self._fetching.came()
        if leaf == "bundle":
            try:
                found = self._model.take_bundle(payload, job.bundle)
            except PollenError as error:
                self._refuse(job, str(error))
                return
            if found:
                self._trained_total = 0
                self._rest()
            else:
                self._put_off("the broker has another model than the task names")
        else:
            try:
                self._model.take_snapshot(payload, job.version)
            except (MessageError, SignatureError) as error:
                LOG.warning("%s; refused", error)
            self._begin(job)

    @property
    def hold(self) -> int:
        """The code of the reason why the policy holds training, 0 for none; see `policy`."""
        return self._policy.hold.code

    @property
    def grows(self) -> bool:
        """Whether an update waits that further training adds to: what it was trained from must not be lost."""
        train = self._train
        return train is not None and train.local is not None and not train.is_final(self._outbox.row(train.task.task))

    @property
    def waiting_for(self) -> str:
        """Why the device isn't training now, in words; "" while it is."""
        if self._run is not None:
            return self._policy.hold.why
        if self._evaluation is not None:
            return "it evaluates the model for the server"
        if self._train is None:
            return "no task from the server" + ("" if self._fetching.possible else ", there is no connection")
        task, row = self._train.task, self._outbox.row(self._train.task.task)
        if self._train.is_final(row):
            return "no receipt from the server yet for what was learned last"
        if self._fetching.leaf is not None:
            return f"the {'model' if self._fetching.leaf == 'bundle' else 'newest weights'} from the server"
        if self._fetching.waits:
            return self._fetching.why
        if self._model.digest != task.bundle:
            return "the task's model isn't here yet"
        try:
            missing = lacks(task, self._model, self._settings.training, self._trained_total)
        except MessageError as error:
            return str(error)
        return self._model.problem or missing or self._policy.hold.why

    def advance(self) -> float:
        """Do what can be done in one slice; returns the seconds until there may be more to do."""
        if self._job is not None and self._fetching.leaf is None and self._model.digest != self._job.bundle:
            self._abandon()
        seconds = self._settings.training.slice_ms / 1000
        started = self._clock.monotonic()
        if self._run is not None:
            self._train_slice(self._run, seconds)
            self._policy.spent(self._clock.monotonic() - started)
        elif self._evaluation is not None:
            self._evaluate_slice(self._evaluation, seconds)
            self._policy.spent(self._clock.monotonic() - started)
        elif self._fetching.leaf is None:
            self._choose()
        elif self._fetching.overdue:
            self._not_fetched()
        trains = self._run is not None and self._policy.hold is FREE
        return 0.0 if trains or self._evaluation is not None else IDLE_S

    def _opened(self, task: Task) -> OpenTrain:
        """The task with its work so far; what is kept back for another, or can't grow any more, is sent now."""
        train = resume(task, self._model, self._outbox, self._settings.upload.outbox_limit_bytes)
        self._release(keep=b"" if train.local is None else task.task)
        return train

    def _release(self, keep: bytes = b"") -> None:
        try:
            self._outbox.release(keep)
        except StoreError as error:
            LOG.error("what is kept back stays so: %s", error)

    def _queue_evaluation(self, task: Task) -> None:
        known = any(known.task == task.task for known in self._evaluations)
        if not known and len(self._evaluations) >= EVALUATIONS:
            self._refuse(task, f"{EVALUATIONS} evaluations wait already")
        elif not known:
            self._evaluations.append(task)

    def _choose(self) -> None:
        """Pick the next job that can be worked on now."""
        if self._fetching.waits:
            return
        job = self._evaluations[0] if self._evaluations else self._answerable_train()
        if job is None:
            return
        if self._model.digest != job.bundle:
            self._get_bundle(job)
        elif self._model.problem:
            self._refuse(job, self._model.problem)
        elif job.kind == "evaluate" or self._is_due(job):
            self._job = job
            self._get_snapshot(job)

    def _answerable_train(self) -> Task | None:
        """The open train task, unless its answer is final."""
        if self._train is None or self._train.is_final(self._outbox.row(self._train.task.task)):
            return None
        return self._train.task

    def _is_due(self, task: Task) -> bool:
        """Whether there are enough new examples for the train task, and the policy lets it begin."""
        try:
            missing = lacks(task, self._model, self._settings.training, self._trained_total)
            return not missing and self._policy.hold is FREE
        except MessageError as error:
            self._refuse(task, str(error))
            return False

    def _get_bundle(self, job: Task) -> None:
        try:
            if self._model.take_stored(job.bundle):
                self._trained_total = 0
                return
        except PollenError as error:
            self._refuse(job, str(error))
            return
        if self._fetching.possible:
            self._job = job
            self._fetching.start("bundle", BUNDLE_FETCH_S)
        else:
            self._put_off("the task's model isn't here, and there is no connection to fetch it")

    def _get_snapshot(self, job: Task) -> None:
        train = self._train
        continues = job.kind == "train" and train is not None and train.local is not None
        if self._fetching.possible and not continues:
            self._fetching.start("weights", self._settings.training.fetch_s)
        else:
            self._begin(job)

    def _not_fetched(self) -> None:
        if self._fetching.cancel() == "weights" and self._job is not None:
            LOG.warning("no snapshot came; going on with the last one known")
            self._begin(self._job)
        else:
            self._put_off("the model didn't come")

    def _begin(self, job: Task) -> None:
        """Bundle and snapshot are there: start computing."""
        learner, graph, snapshot = self._model.learner, self._model.graph, self._model.snapshot
        if snapshot is None:
            self._put_off("no weights have been published yet")
            return
        if learner is None or graph is None or not len(learner.buffer):
            self._refuse(job, "no examples yet")
            return
        if job.kind == "evaluate":
            values = self._model.join(snapshot.weights)
            self._evaluation = trainer.EvaluationRun(graph, learner.buffer, *values, self._clock)
        elif self._train is not None:
            try:
                self._run = start(
                    self._train,
                    self._model,
                    self._settings.training,
                    chance=self._chance,
                    clock=self._clock,
                    rate_factor=self._after_drift.factor(learner.drifted_at),
                )
                self._model.begin_training()
            except MessageError as error:
                self._refuse(job, str(error))

    def _train_slice(self, run: trainer.TrainingRun, seconds: float) -> None:
        train, learner = self._train, self._model.learner
        row = None if train is None else self._outbox.row(train.task.task)
        # When the connection came back, it took the earlier result.
        if train is None or learner is None or (row is not None and row.handed):
            self._rest()
            return
        if self._policy.hold is not FREE:  # it goes on later where it is now
            self._paused = True
            self._model.record.rest()
            return
        if self._paused:
            self._paused = False
            self._model.begin_training()
        try:
            if not run.advance(seconds):
                return
        except trainer.TrainingDivergedError as error:
            self._trained_total = learner.buffer.total
            diverged(train, run, self._model)
            self._model.diverged()
            self._refuse(train.task, str(error))
            return
        self._trained_total = learner.buffer.total
        if run.result is not None:
            self.train_seconds += run.result.seconds
            row = finish(train, run.result, self._model, self._outbox, settings=self._settings, chance=self._chance)
            self.updates_made += row is not None and not row.skipped
        self._rest()

    def _evaluate_slice(self, evaluation: trainer.EvaluationRun, seconds: float) -> None:
        job = self._job
        if evaluation.advance(seconds):
            self._rest()
            if job is not None:
                self._answer(job, evaluation.samples, evaluation.metrics)

    def _answer(self, task: Task, samples: int, metrics: dict[str, float]) -> None:
        payload = messages.encode(Result(task.task, samples, messages.finite_metrics(metrics)))
        self._put_result(task, payload, samples)

    def _refuse(self, task: Task, error: str) -> None:
        """Tell the server why the task can't be done."""
        LOG.warning("task %s can't be done: %s", task.task.hex()[:8], error)
        if self._job is None or self._job is task:
            self._rest()
        if self._outbox.row(task.task) is not None:
            self._release()  # an earlier, good answer waits
            return
        payload = messages.encode(Result(task.task, 0, {}, error[:MAX_TEXT]))
        self._put_result(task, payload, 0)

    def _put_result(self, task: Task, payload: bytes, samples: int) -> None:
        if task in self._evaluations:
            self._evaluations.remove(task)
        try:
            self._outbox.put(Reply(task.task, "result", lambda _seq: payload, samples=samples))
        except StoreError as error:
            LOG.error("the result can't be kept: %s", error)
            self._fetching.rest()

    def _put_off(self, why: str) -> None:
        if self._job is not None and self._job.kind == "evaluate" and self._fetching.possible:
            self._refuse(self._job, why)  # else it would hold up all others for as long as the server has another model
            return
        self._fetching.put_off(why)
        self._job = None

    def _abandon(self) -> None:
        """The device went back to the bundle before this job's: what was learned with that one is worth nothing."""
        if self._train is not None:
            self._train.local = None
        self._rest()

    def _rest(self) -> None:
        """The job is done, wanted no more, or to be chosen anew."""
        self._model.record.rest()
        self._job = self._run = self._evaluation = None
        self._fetching.done()
