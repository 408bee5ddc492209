"""The merge loop: the one owner of the model. Collect, decide, commit, tell, dispatch; no rounds.

Replies are taken in whatever group they come in, each is merged for itself, and the group is committed in one
transaction together with the devices' next tasks. Only then does anyone hear of it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from pollen.messages import Scalar
from pollen.systemd import Watchdog, notify
from server.async_strategy import AsynchronousStrategy
from server.decisions import Decisions, Group, Timing
from server.devices import Devices
from server.evaluation_schedule import EvaluationSchedule
from server.fleet import Fleet, Node
from server.guard import Arrival, Guard
from server.history import AsyncHistory
from server.inference_graphs import InferenceGraphs
from server.model import GlobalModel
from server.store import Commit, StateStore
from server.streaming import Stream
from server.tasks import OpenTask, new_task_id
from server.tuning import Tuning
from server.watch import ModelWatch

LOG = logging.getLogger("pollen.server")

WAIT_S = 0.5
LOOK_AGAIN_S = 1.0  # at nodes that are free and have no task: left out by the strategy, or failed a while ago
BACK_OFF_S = 5.0  # after a device's failure, doubled with each further one
BACK_OFF_MAX_S = 600.0
LAST_ARRIVALS_S = 5.0  # how long a stop decides what has arrived: somebody may go on sending


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop, None: never; a snapshot is published at most every `publish_interval_s`. Seconds."""

    train_time_s: float | None = None
    merges: int | None = None
    publish_interval_s: float = 1.0

    def check(self, *, streams: bool) -> None:
        """Raise ValueError, naming it, for a limit that can't be used; `streams`: data arrive during the run."""
        if self.train_time_s is not None and not (isinstance(self.train_time_s, int | float) and self.train_time_s > 0):
            raise ValueError(f"total_train_time = {self.train_time_s!r:.100} must be seconds, above 0, or None")
        if self.merges is not None and self.merges < 1:
            raise ValueError(f"merges = {self.merges} must be at least 1, or None")
        if streams and self.train_time_s is None and self.merges is None:
            raise ValueError("streaming needs total_train_time or merges: the data grow over the whole run")


def back_off_s(failures: int) -> float:
    """How long a device that has failed `failures` >= 1 times in a row gets no task."""
    return min(BACK_OFF_S * 2.0 ** min(failures - 1, 30), BACK_OFF_MAX_S)


class MergeLoop:
    """Merges what a fleet sends into a model until it is told to stop. `run` it once, in one thread."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        model: GlobalModel,
        strategy: AsynchronousStrategy,
        store: StateStore,
        history: AsyncHistory,
        devices: Devices,
        guard: Guard | None = None,
        evaluations: EvaluationSchedule,
        limits: Limits,
        stop: threading.Event,
        stream: Stream | None = None,
        inference: InferenceGraphs | None = None,
        watch: ModelWatch | None = None,
        tunings: SimpleQueue[Tuning] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._model = model
        self._strategy = strategy
        self._store = store
        self._history = history
        self._evaluations = evaluations
        self._federated = evaluations.federated
        self._stream = stream
        self._inference = inference
        self._watch = watch or ModelWatch()
        self._tunings = tunings or SimpleQueue()
        self._limits = limits
        self._stop = stop
        self._clock = clock
        self._devices = devices
        self._decisions = Decisions(model, strategy, store, history, devices, guard=guard)
        self._watchdog = Watchdog()
        self._open: dict[str, OpenTask] = {}
        self._given: dict[str, float] = {}  # when each open task was given, or taken up again
        self._held: dict[str, tuple[Node, int]] = {}  # whose next task waits until it would be of a version, and which
        self._back_off: dict[str, tuple[int, float]] = {}  # failures in a row, and until when it gets no task
        self._left_out = False
        self._looked_at = -float("inf")
        self._merges = 0
        self._started = clock()
        self._published_at = -float("inf")
        self._published_version = -1

    def run(self, open_tasks: Sequence[OpenTask] = ()) -> None:
        """Merge until a limit or `stop`; then decide what has already arrived, publish and evaluate the last version.

        `open_tasks`: those of an earlier process. Raises StoreError when the state can't be made durable: nothing
        undurable has been told to a device then, so every update comes again after a restart.
        """
        self._started = self._clock()
        self._open = {task.device: task for task in open_tasks}
        for lost in self._fleet.resume(open_tasks):
            del self._open[lost.device]
        self._given = dict.fromkeys(self._open, self._started)
        self._history.add_event("start", self._model.version)
        self._publish()
        self._dispatch(self._fleet.reachable(), Group())
        notify("READY=1")
        while not (reason := self._stop_reason()):
            self._beat()
            arrivals = self._fleet.collect(self._patience_s())
            while not self._tunings.empty():
                self._take_over(self._tunings.get())
            self._decide(arrivals)
            self._after_merges()
        LOG.info("stopping at version %d: %s", self._model.version, reason)
        if self._stop.is_set():  # another model's loop may go on
            notify("STOPPING=1")
        until = self._clock() + LAST_ARRIVALS_S
        while not self._limit_reached(Group()) and self._clock() < until and (arrivals := self._fleet.collect(0.0)):
            self._beat()
            self._decide(arrivals)
        if not self._store.durable:  # nobody will go on with the buffer
            self._flush(Group(), now=True)
        self._publish()
        self._evaluations.last(self._model, self._beat, self._stop)
        self._fleet.finish()
        self._history.add_event("stop", self._model.version, reason=reason)
        self._watchdog.end()

    def _beat(self) -> None:
        self._watchdog.beat()
        self._watch.turned(len(self._open))

    def _take_over(self, tuning: Tuning) -> None:
        self._limits = replace(self._limits, publish_interval_s=tuning.publish_interval_s)
        self._evaluations.take_over(tuning.evaluation_interval_s)
        if self._federated is not None:
            self._federated.take_over(tuning.federated_interval_s, tuning.federated_deadline_s)
        self._decisions.guard.take_over(tuning.guard)
        self._left_out = True  # free devices are looked at again soon

    def _stop_reason(self) -> str:
        asked = "asked to stop" if self._stop.is_set() else ""
        return asked or self._limit_reached(Group()) or self._evaluations.stop_reason

    def _limit_reached(self, group: Group) -> str:
        """Why it is time to stop, `group` being decided and not yet committed; "" if it isn't."""
        limits = self._limits
        if limits.merges is not None and self._merges + len(group.merges) >= limits.merges:
            return f"merges = {limits.merges} done"
        if limits.train_time_s is not None and self._clock() - self._started >= limits.train_time_s:
            return f"train time of {limits.train_time_s:g} s over"
        return ""

    def _patience_s(self) -> float:
        """How long to wait for arrivals: until the rule's buffer or a publication that devices wait for is due."""
        due = self._strategy.rule.flush_at_s()
        at = self._clock() + WAIT_S if due is None else due
        if self._held and self._published_version < self._model.version:
            at = min(at, self._published_at + self._limits.publish_interval_s)
        return min(WAIT_S, max(0.0, at - self._clock()))

    def _decide(self, arrivals: Sequence[Arrival]) -> None:
        group = Group()
        now = self._clock()
        for number, arrival in enumerate(arrivals):
            if self._limit_reached(group):
                self._fleet.give_back(arrivals[number:])
                break
            if self._federated and (receipted := self._federated.take(arrival, self._open.get(arrival.device))):
                group.settled.append(receipted)
                continue
            timing = Timing(now, now - self._given.get(arrival.device, now), self._given)
            begun = time.perf_counter()
            self._decisions.decide(arrival, self._open, group, timing)
            self._watch.decided(time.perf_counter() - begun)
            task = self._open.get(arrival.device)
            if task is not None and task.task in group.answers:
                self._given.pop(arrival.device, None)
        self._flush(group)
        for merge in group.merges:
            self._back_off.pop(merge.device, None)
        for device in group.failed:
            self._fail(device)
        self._dispatch(self._candidates(group), group)

    def _flush(self, group: Group, *, now: bool = False) -> None:
        """Merge what waits in the rule's buffer when its time has come, or `now`."""
        due = self._strategy.rule.flush_at_s()
        if due is not None and (now or due <= self._clock()) and self._strategy.rule.flush(self._model.weights):
            self._model.advance()
            group.changed = True

    def _candidates(self, group: Group) -> Sequence[Node]:
        """Who may be free for a task: those that have just answered, and now and then everyone."""
        overdue = self._clock() - self._looked_at >= LOOK_AGAIN_S and (self._left_out or bool(self._back_off))
        if self._fleet.roster_changed() or overdue:
            self._looked_at, self._left_out = self._clock(), False
            return self._fleet.reachable()
        return [Node(settled.arrival.node, settled.arrival.device) for settled in group.settled]

    def _fail(self, device: str) -> None:
        failures = self._back_off.get(device, (0, 0.0))[0] + 1
        self._back_off[device] = failures, self._clock() + back_off_s(failures)

    def _dispatch(self, candidates: Sequence[Node], group: Group) -> None:
        """Commit `group` together with the next tasks of those `candidates` that are free, then tell everyone."""
        for device in {answer.device for answer in group.answers.values()}:
            if device in self._open and self._open[device].task in group.answers:
                del self._open[device]
        self._held.update(group.held)
        self._merges += len(group.merges)
        opened = self._next_tasks(candidates)
        devices = self._devices.drain()
        if group.answers or group.changed or opened or devices:
            begun = time.perf_counter()
            self._store.commit(
                Commit(
                    version=self._model.version,
                    weights=self._model.weights if group.changed else None,
                    kept=self._decisions.drain(),
                    devices=devices,
                    answers=list(group.answers.values()),
                    opened=opened,
                )
            )
            self._watch.committed(time.perf_counter() - begun)
        self._open.update((task.device, task) for task in opened)
        self._given.update((task.device, self._clock()) for task in opened)
        self._fleet.settle(group.settled)
        self._watch.receipted(sum(settled.receipt is not None for settled in group.settled))
        self._fleet.assign(opened, self._model)
        if self._federated:
            self._federated.ask((node for node in candidates if node.device not in self._open), self._model)
        self._history.add_merges(group.merges)
        for device, reason, kind in group.rejections:
            if self._history.add_rejection(device, reason, kind):
                LOG.warning("%s: update rejected: %s", device, reason)

    def _next_tasks(self, candidates: Sequence[Node]) -> list[OpenTask]:
        now = self._clock()
        held = {node.id for node in candidates if self._federated and self._federated.holds(node.device)}
        self._left_out = self._left_out or bool(held)
        free = {
            node.id: node
            for node in candidates
            if node.device not in self._open
            and node.device not in self._held
            and (node.device not in self._back_off or self._back_off[node.device][1] <= now)
            and node.id not in held
        }
        if not free or self._stop.is_set():
            return []
        version = self._fleet.task_version(self._model)
        configs = self._fleet.task_config(version, list(free.values()))
        self._left_out = self._left_out or len(configs) < len(free)
        wall = time.time()
        return [
            OpenTask(new_task_id(), node.id, node.device, "train", version, wall, self._config(node, configs))
            for node in free.values()
            if node.id in configs
        ]

    def _config(self, node: Node, configs: Mapping[int, Mapping[str, Scalar]]) -> Mapping[str, Scalar]:
        said = configs[node.id]
        if self._stream is not None:
            said = {**self._stream.config(node.device, self._progress()), **said}
        return self._strategy.task_config(node.device, said)

    def _progress(self) -> float:
        """The share of the run that is over, by the limit that is nearest; 0 without any."""
        limits = self._limits
        by_time = (self._clock() - self._started) / limits.train_time_s if limits.train_time_s else 0.0
        return max(by_time, self._merges / limits.merges if limits.merges else 0.0)

    def _after_merges(self) -> None:
        if self._clock() - self._published_at >= self._limits.publish_interval_s:
            self._publish()
        newest = self._fleet.task_version(self._model)
        released = [node for node, version in self._held.values() if version <= newest]
        if released:
            for node in released:
                del self._held[node.device]
            self._dispatch(released, Group())
        self._evaluations.central(self._model)
        if self._inference and (weights := self._model.snapshot(self._published_version)) is not None:
            self._inference.advance(self._published_version, weights)
        if self._federated:
            if self._evaluations.by_devices():
                self._dispatch(self._fleet.reachable(), Group())  # those that did not answer are free again
            if self._federated.is_due(self._model.version):
                self._publish()
                self._federated.begin(self._model, lambda device: device not in self._open)
            else:
                self._federated.ask_more(self._model)

    def _publish(self) -> None:
        """Publish the current version; the first time also one that an earlier process had published already."""
        version = self._model.version
        if version == self._published_version:
            return
        known = version in self._model.kept_versions
        issued = self._model.publish()
        if not known:
            # Durable first: a base version that the server forgot would cost a device its update.
            self._store.publish(issued, self._model.kept_versions)
            self._history.add_event("publication", version, size_bytes=self._model.weights.nbytes)
            if (privacy := self._strategy.privacy) is not None:
                self._history.add_privacy(version, privacy.epsilon, privacy.settings.delta)
        self._fleet.publish(issued)
        self._watch.published(version)
        self._published_version = version
        self._published_at = self._clock()
