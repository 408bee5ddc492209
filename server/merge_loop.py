"""The merge loop: the one owner of the model. Collect, admit, merge, commit, tell, dispatch; no rounds.

Replies are taken in whatever group they come in, each is merged for itself, and the group is committed in one
transaction together with the devices' next tasks. Only then does anyone hear of it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pollen import messages
from pollen.fields import MAX_TEXT
from pollen.messages import Outcome, Receipt
from pollen.systemd import Watchdog
from server.async_strategy import AsynchronousStrategy
from server.evaluation import Evaluator
from server.fleet import Fleet, Node, Settled
from server.guard import Arrival, RefusedError, admit
from server.history import AsyncHistory, Merge
from server.model import GlobalModel
from server.store import Answer, Commit, StateStore
from server.tasks import OpenTask, new_task_id

LOG = logging.getLogger("pollen.server")

WAIT_S = 0.5
BACK_OFF_S = 5.0  # after a device's failure, doubled with each further one
BACK_OFF_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop, and how often to do what need not follow every merge. Seconds; None: never.

    A snapshot is published at most every `publish_interval_s`; the newest is evaluated every `evaluate_interval_s`.
    """

    train_time_s: float | None = None
    merges: int | None = None
    publish_interval_s: float = 1.0
    evaluate_interval_s: float = 5.0


@dataclass(slots=True)
class _Group:
    """What one pass of the loop has decided and not yet committed."""

    settled: list[Settled] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    rejections: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _BackOff:
    failures: int
    until: float


class MergeLoop:
    """Merges what a fleet sends into a model until it is told to stop. `run` it in one thread."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        model: GlobalModel,
        strategy: AsynchronousStrategy,
        store: StateStore,
        history: AsyncHistory,
        evaluator: Evaluator | None,
        limits: Limits,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._model = model
        self._strategy = strategy
        self._store = store
        self._history = history
        self._evaluator = evaluator
        self._limits = limits
        self._stop = stop
        self._clock = clock
        self._open: dict[str, OpenTask] = {}
        self._back_off: dict[str, _BackOff] = {}
        self._scratch = np.empty_like(model.weights)
        self._published_at = -float("inf")
        self._published_version = -1
        self._evaluated_at = -float("inf")
        self._evaluated_version = -1

    def run(self, open_tasks: Sequence[OpenTask] = ()) -> None:
        """Merge until a limit or `stop`; then decide what has already arrived, publish and evaluate the last version.

        `open_tasks`: those of an earlier process. Raises StoreError when the state can't be made durable: nothing
        undurable has been told to a device then, so every update comes again after a restart.
        """
        started = self._clock()
        watchdog = Watchdog()
        self._open = {task.device: task for task in open_tasks}
        for lost in self._fleet.resume(open_tasks):
            del self._open[lost.device]
        merged_before = self._history.merged
        self._history.add_event("start", self._model.version)
        self._publish()
        self._dispatch_to(self._fleet.reachable(), _Group())
        while not self._stop.is_set() and not self._limit_reached(started, merged_before):
            watchdog.beat()
            self._decide(self._fleet.collect(WAIT_S), started, merged_before)
            self._after_merges()
        self._decide(self._fleet.collect(0.0), started, merged_before)
        self._publish()
        self._evaluate(final=True)
        self._history.add_event("stop", self._model.version)

    def _limit_reached(self, started: float, merged_before: int) -> bool:
        limits = self._limits
        if limits.merges is not None and self._history.merged - merged_before >= limits.merges:
            return True
        return limits.train_time_s is not None and self._clock() - started >= limits.train_time_s

    def _decide(self, arrivals: Sequence[Arrival], started: float, merged_before: int) -> None:
        group = _Group()
        for arrival in arrivals:
            if self._limit_reached(started, merged_before - len(group.merges)):
                break  # the rest stays unanswered: its senders keep it
            self._decide_one(arrival, group)
        everyone = self._fleet.roster_changed() or bool(self._back_off)
        candidates = (
            self._fleet.reachable() if everyone else [Node(s.arrival.node, s.arrival.device) for s in group.settled]
        )
        self._dispatch_to(candidates, group)

    def _decide_one(self, arrival: Arrival, group: _Group) -> None:
        open_task = self._open.get(arrival.device)
        task = arrival.task if arrival.task is not None else open_task.task if open_task else None
        if task is None:
            group.rejections.append((arrival.device, arrival.error))
            group.settled.append(Settled(arrival, None))
            return
        if open_task is None or open_task.task != task:
            group.settled.append(Settled(arrival, self._repeat(arrival, task, group)))
            return
        try:
            staleness = admit(arrival, self._model, self._scratch)
        except RefusedError as refusal:
            reason = str(refusal)[:MAX_TEXT]
            group.rejections.append((arrival.device, reason))
            self._fail(arrival.device)
            self._answer(
                arrival, task, Receipt(task, arrival.seq, "rejected", self._model.version, reason=reason), group
            )
            return
        base = self._model.snapshot(arrival.base) if arrival.base_weights is None else arrival.base_weights
        merged = self._strategy.merge(self._model.weights, self._scratch, base, staleness, arrival.samples)
        self._model.version += 1
        self._back_off.pop(arrival.device, None)
        receipt = Receipt(
            task, arrival.seq, "merged", self._model.version, float(merged.weight), staleness, merged.remark
        )
        self._answer(arrival, task, receipt, group)
        group.merges.append(
            Merge(
                elapsed_s=self._history.elapsed_s(),
                version=self._model.version,
                device=arrival.device,
                staleness=staleness,
                samples=arrival.samples,
                steps=arrival.steps,
                weight=float(merged.weight),
                delta_norm=float(np.sqrt(np.dot(self._scratch, self._scratch))),
                size_bytes=arrival.size_bytes,
                metrics=arrival.metrics,
            )
        )

    def _answer(self, arrival: Arrival, task: bytes, receipt: Receipt, group: _Group) -> None:
        payload = messages.encode(receipt)
        group.answers.append(Answer(task, arrival.device, arrival.seq, payload))
        group.settled.append(Settled(arrival, payload))
        del self._open[arrival.device]

    def _repeat(self, arrival: Arrival, task: bytes, group: _Group) -> bytes:
        """The receipt for a reply to a task that isn't open: the first one again, or a rejection."""
        known = next((a for a in group.answers if a.task == task), None) or self._store.answer(task)
        if known is None or known.device != arrival.device:
            reason = "unknown task: it was never given to this device, or was answered long ago"
            group.rejections.append((arrival.device, reason))
            return messages.encode(Receipt(task, arrival.seq, "rejected", self._model.version, reason=reason))
        if known.seq == arrival.seq:
            return known.receipt
        first = messages.decode_receipt(known.receipt)
        outcome: Outcome = "duplicate"
        reason = f"the task was answered by update {known.seq}"
        return messages.encode(
            Receipt(task, arrival.seq, outcome, first.version, first.weight, first.staleness, reason)
        )

    def _fail(self, device: str) -> None:
        failures = self._back_off[device].failures + 1 if device in self._back_off else 1
        pause = min(BACK_OFF_S * 2 ** (failures - 1), BACK_OFF_MAX_S)
        self._back_off[device] = _BackOff(failures, self._clock() + pause)

    def _dispatch_to(self, candidates: Sequence[Node], group: _Group) -> None:
        """Commit `group` together with the next tasks of those `candidates` that are free, then tell everyone."""
        now = self._clock()
        free = [
            node
            for node in candidates
            if node.device not in self._open
            and (node.device not in self._back_off or self._back_off[node.device].until <= now)
        ]
        opened: list[OpenTask] = []
        if free and not self._stop.is_set():
            version = self._fleet.task_version(self._model)
            configs = self._fleet.task_config(version, free)
            wall = time.time()
            opened = [
                OpenTask(new_task_id(), node.id, node.device, "train", version, wall, configs[node.id])
                for node in free
                if node.id in configs
            ]
        if group.answers or opened:
            merged = bool(group.merges)
            self._store.commit(
                Commit(
                    version=self._model.version,
                    weights=self._model.weights if merged else None,
                    strategy=self._strategy.state() if merged else {},
                    answers=group.answers,
                    opened=opened,
                )
            )
        self._open.update((task.device, task) for task in opened)
        self._fleet.settle(group.settled)
        self._fleet.assign(opened, self._model)
        self._history.add_merges(group.merges)
        for device, reason in group.rejections:
            LOG.warning("%s: update rejected: %s", device, reason)
            self._history.add_rejection(device, reason)

    def _after_merges(self) -> None:
        now = self._clock()
        if now - self._published_at >= self._limits.publish_interval_s:
            self._publish()
        if now - self._evaluated_at >= self._limits.evaluate_interval_s:
            self._evaluated_at = now
            self._evaluate(final=False)

    def _publish(self) -> None:
        """Publish the current version; the first time also one that an earlier process had published already."""
        version = self._model.version
        if version == self._published_version:
            return
        known = version in self._model.kept_versions
        weights = self._model.publish()
        if not known:
            # Durable first: a base version that the server forgot would cost a device its update.
            self._store.publish(version, weights, self._model.kept_versions)
            self._history.add_event("publication", version)
        self._fleet.publish(version, weights)
        self._published_version = version
        self._published_at = self._clock()

    def _evaluate(self, *, final: bool) -> None:
        if self._evaluator is None:
            return
        if final:
            self._evaluator.finish(timeout_s=60)
        if not self._evaluator.busy and self._model.version != self._evaluated_version:
            self._evaluated_version = self._model.version
            self._evaluator.start(self._model.version, self._model.weights.copy())
        if final:
            self._evaluator.finish(timeout_s=60)
        for version, (loss, metrics) in self._evaluator.results():
            LOG.info("version %d: loss %.4f %s", version, loss, metrics)
            self._history.add_evaluation(version, loss, metrics)
