"""What the server asked for, done step by step: an explicit state machine that never blocks."""

import logging
import random
from collections.abc import Callable
from typing import Final

from edge_client.clock import Clock
from edge_client.model.device_model import DeviceModel
from edge_client.network.fetching import Fetching
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.settings import EdgeSettings
from edge_client.training import trainer
from edge_client.training.after_drift import AfterDrift
from edge_client.training.held_run import HeldRun
from edge_client.training.own_training import OwnTraining
from edge_client.training.policy import FREE, Policy
from edge_client.training.results import Results
from edge_client.training.train_task import OpenTrain, diverged, finish, lacks, resume, start
from edge_client.training.waiting import waits_for
from pollen import messages
from pollen.errors import InterpreterError, MessageError, PollenError, SignatureError, StoreError
from pollen.messages import Receipt, Task
from pollen.topics import ModelLeaf

LOG = logging.getLogger(__name__)

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
        self._results = Results(outbox, model, self._fetching, self._policy, clock)
        self._chance = random.Random()  # noqa: S311 - shuffles examples, keeps no secret
        self._after_drift = AfterDrift(settings.drift)
        self._train: OpenTrain | None = None
        self._job: Task | None = None
        self._run: HeldRun | None = None
        self._trained_total = 0
        self.own = OwnTraining(
            settings.training, model, self._policy, self._after_drift, clock=clock, chance=self._chance
        )
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
            self._results.put(task, 0, self._metrics())
        elif task.kind == "evaluate":
            too_many = self._results.queue(task)
            if too_many:
                self._refuse(task, too_many)
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
        if self._results.run is not None:
            return "it evaluates the model for the server"
        if self._is_alone:
            return self.own.waiting_for
        if self._train is None:
            return "no task from the server" + ("" if self._fetching.possible else ", there is no connection")
        task, row = self._train.task, self._outbox.row(self._train.task.task)
        if self._train.is_final(row):
            return "no receipt from the server yet for what was learned last"
        how, model, fetching = self._settings.training, self._model, self._fetching
        return waits_for(task, how, model, fetching, policy=self._policy, trained_total=self._trained_total)

    def advance(self) -> float:
        """Do what can be done in one slice; returns the seconds until there may be more to do."""
        if self._job is not None and self._fetching.leaf is None and self._model.digest != self._job.bundle:
            self._abandon()
        seconds = self._settings.training.slice_ms / 1000
        if self._run is not None:
            self._train_slice(self._run, seconds)
        elif self._results.run is not None:
            if self._results.advance(self._results.run, seconds):
                self._rest()
        elif self._fetching.leaf is None:
            self._choose()
        elif self._fetching.overdue:
            self._not_fetched()
        if self._is_alone and self._job is None:
            return 0.0 if self.own.advance(seconds, self._trained_total) else IDLE_S
        self.own.stop()
        trains = self._run is not None and self._policy.hold is FREE
        return 0.0 if trains or self._results.run is not None else IDLE_S

    @property
    def _is_alone(self) -> bool:
        """Whether there has been no connection for a while, and no task that can be worked on without one."""
        job = self._answerable_train()
        return self.own.is_due(connected=self._fetching.possible) and (job is None or job.bundle != self._model.digest)

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

    def _choose(self) -> None:
        """Pick the next job that can be worked on now."""
        if self._fetching.waits:
            return
        job = self._results.evaluations[0] if self._results.evaluations else self._answerable_train()
        if job is None:
            return
        if self._model.digest != job.bundle:
            self._get_bundle(job)
        elif self._model.problem:
            self._give_up(job, self._model.problem)
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
            missing = lacks(task.config, self._model, self._settings.training, self._trained_total)
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
            self._give_up(job, str(error))
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
            self._results.begin(graph, learner.buffer, snapshot.weights)
        elif self._train is not None:
            try:
                run = start(
                    self._train,
                    self._model,
                    self._settings.training,
                    chance=self._chance,
                    clock=self._clock,
                    rate_factor=self._after_drift.factor(learner.drifted_at),
                )
                self._run = HeldRun(run, self._model, self._policy, self._clock)
            except MessageError as error:
                self._refuse(job, str(error))

    def _train_slice(self, run: HeldRun, seconds: float) -> None:
        train, learner = self._train, self._model.learner
        row = None if train is None else self._outbox.row(train.task.task)
        # When the connection came back, it took the earlier result.
        if train is None or learner is None or (row is not None and row.handed):
            self._rest()
            return
        try:
            if not run.advance(seconds):
                return
        except trainer.TrainingDivergedError as error:
            self._trained_total = learner.trained_total = learner.buffer.total
            diverged(train, run.run, self._model)
            self._model.diverged()
            self._refuse(train.task, str(error))
            return
        except InterpreterError as error:
            self._model.failed(str(error))
            self._give_up(train.task, str(error))
            return
        self._trained_total = learner.trained_total = learner.buffer.total
        if run.result is not None:
            self.train_seconds += run.result.seconds
            row = finish(train, run.result, self._model, self._outbox, settings=self._settings, chance=self._chance)
            self.updates_made += row is not None and not row.skipped
        self._rest()

    def _give_up(self, task: Task, error: str) -> None:
        """The task can't be worked on any more; what was learned for it is sent as it is."""
        if self._train is not None and self._train.task is task:
            self._train.local = None
        self._refuse(task, error)

    def _refuse(self, task: Task, error: str) -> None:
        """Tell the server why the task can't be done."""
        LOG.warning("task %s can't be done: %s", task.task.hex()[:8], error)
        if self._job is None or self._job is task:
            self._rest()
        if self._outbox.row(task.task) is not None:
            self._release()  # an earlier, good answer waits
            return
        self._results.put(task, 0, {}, error)

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
        self._job = self._run = self._results.run = None
        self._fetching.done()
