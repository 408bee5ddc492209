"""Federated evaluation beside the merge loop: devices score the model on data of their own.

A round is asked of the devices that the strategy chooses, and closed when all have answered or its time is over. A
node that does one thing at a time is asked between two train tasks; the others, devices behind gateways, have an
evaluate task beside their train task. Nothing of it is durable: after a restart the next round begins anew, and what
still comes for the last one is receipted and dropped.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pollen import messages
from pollen.fields import MAX_TEXT
from pollen.messages import Outcome, Receipt, Scalar
from server.evaluation_results import Aggregated, Scored
from server.fleet import Fleet, Node, Settled
from server.guard import Arrival
from server.model import GlobalModel
from server.tasks import OpenTask, new_task_id

LOG = logging.getLogger("pollen.server.evaluation")

RECEIPTS_KEPT: Final = 10_000  # of answers that may be delivered again
ASKED_A_PASS: Final = 500  # of the merge loop
OVER: Final = "the evaluation is over, or this server did not ask for it"

Aggregate = Callable[[int, Sequence[Scored], Sequence[str]], Aggregated | None]


@dataclass(frozen=True, slots=True)
class FederatedScore:
    """What a round came to: the model's `version` when it was asked for, loss and metrics over all samples."""

    version: int
    loss: float
    metrics: Mapping[str, Any]
    devices: int
    samples: int


@dataclass(slots=True)
class _Round:
    version: int
    until: float
    wanted: dict[str, Mapping[str, Scalar]] = field(default_factory=dict)  # by device, not yet asked
    ready: deque[Node] = field(default_factory=deque)  # those of them that need not become free first
    asked: dict[bytes, OpenTask] = field(default_factory=dict)  # by task, unanswered
    alone: dict[str, bytes] = field(default_factory=dict)  # tasks of devices that do nothing else meanwhile
    scored: list[Scored] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class FederatedEvaluation:
    """At most one round at a time, a new one every `interval_s`, each closed after `deadline_s` at the latest.

    `aggregate(version, [(node, evaluated)], failures)`: loss and metrics of a round, None to drop it. `version` is the
    model's when the round begins; each device scores the newest it gets, which may be a few merges ahead of it.
    Owned by the merge loop's thread.
    """

    def __init__(
        self,
        fleet: Fleet,
        aggregate: Aggregate,
        *,
        interval_s: float,
        deadline_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._aggregate = aggregate
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._began_at = clock()
        self._began_version = -1
        self._round: _Round | None = None
        self._receipts: OrderedDict[bytes, tuple[str, bytes]] = OrderedDict()  # by task: device, receipt

    def take_over(self, interval_s: float, deadline_s: float) -> None:
        """Go on by these, in seconds; an `interval_s` of 0 begins no further round."""
        self._interval_s, self._deadline_s = interval_s, deadline_s

    def is_due(self, version: int) -> bool:
        """Whether it is time to begin a round; never twice for the same `version`."""
        over = self._interval_s > 0 and self._clock() - self._began_at >= self._interval_s
        return over and self._round is None and version != self._began_version

    def begin(self, model: GlobalModel, is_free: Callable[[str], bool]) -> None:
        """Begin a round on `model`, which has been published; `is_free(device)`: whether it has no train task."""
        self._began_at, self._began_version = self._clock(), model.version
        nodes = {node.id: node for node in self._fleet.reachable()}
        try:
            configs = self._fleet.task_config(model.version, list(nodes.values()), "evaluate") if nodes else {}
        except Exception:  # a user's strategy may raise anything; merging must go on
            LOG.exception("nobody could be asked to evaluate version %d", model.version)
            return
        if not configs:
            return
        self._round = _Round(model.version, self._clock() + self._deadline_s)
        chosen = [nodes[node] for node in configs if node in nodes]
        self._round.wanted = {node.device: configs[node.id] for node in chosen}
        self._round.ready.extend(node for node in chosen if is_free(node.device) or not self._fleet.one_at_a_time(node))
        self.ask_more(model)

    def ask_more(self, model: GlobalModel) -> None:
        """Ask some of those that need not become free first; all of a large fleet at once would hold up the merging."""
        ready = self._round.ready if self._round is not None else deque()
        self.ask([ready.popleft() for _ in range(min(ASKED_A_PASS, len(ready)))], model)

    def holds(self, device: str) -> bool:
        """Whether a device that has no train task must not get one: it evaluates, or is about to."""
        return self._round is not None and (device in self._round.wanted or device in self._round.alone)

    def ask(self, free: Iterable[Node], model: GlobalModel) -> None:
        """Ask those of the `free` nodes that the round waits for; ordinary nodes get `model` as it is now."""
        current = self._round
        if current is None or not current.wanted:
            return
        tasks = []
        for node in free:
            config = current.wanted.pop(node.device, None)
            if config is None:
                continue
            task = OpenTask(new_task_id(), node.id, node.device, "evaluate", current.version, time.time(), dict(config))
            current.asked[task.task] = task
            if self._fleet.one_at_a_time(node):
                current.alone[node.device] = task.task
            tasks.append(task)
        if tasks:
            self._fleet.assign(tasks, model)

    def take(self, arrival: Arrival, open_task: OpenTask | None) -> Settled | None:
        """Take `arrival` if it answers an evaluate task, with its receipt; None for what the merge loop must decide.

        `open_task`: the device's train task.
        """
        if arrival.task is None:
            return None
        device, receipt = self._receipts.get(arrival.task, ("", b""))
        if receipt and device == arrival.device:
            return Settled(arrival, receipt)
        current = self._round
        task = None if current is None else current.asked.get(arrival.task)
        if current is not None and task is not None and task.device == arrival.device:
            return Settled(arrival, self._answered(current, task, arrival))
        if arrival.evaluated is None or (open_task is not None and open_task.task == arrival.task):
            return None
        return Settled(arrival, self._receipt(arrival.task, arrival.device, "rejected", OVER))

    def is_over(self) -> bool:
        """Whether there is a round that must be closed: all have answered, or its time has passed."""
        current = self._round
        return current is not None and (not (current.asked or current.wanted) or self._clock() >= current.until)

    def close(self) -> FederatedScore | None:
        """End the round with what has come so far; None when there is none, or it came to nothing."""
        current, self._round = self._round, None
        if current is None:
            return None
        silent = list(current.asked.values())
        for task in silent:
            self._receipt(task.task, task.device, "rejected", OVER)
        self._fleet.withdraw(silent)
        LOG.info(
            "version %d evaluated by %d devices; %d failed, %d did not answer, %d were busy",
            current.version,
            len(current.scored),
            len(current.failed),
            len(silent),
            len(current.wanted),
        )
        if not current.scored:
            return None
        try:
            score = self._aggregate(current.version, current.scored, current.failed)
        except Exception:  # a user's function may raise anything; merging must go on
            LOG.exception("federated evaluation of version %d could not be aggregated", current.version)
            return None
        if score is None:
            return None
        samples = sum(evaluated.samples for _, evaluated in current.scored)
        return FederatedScore(current.version, float(score[0]), score[1], len(current.scored), samples)

    def _answered(self, current: _Round, task: OpenTask, arrival: Arrival) -> bytes:
        del current.asked[task.task]
        current.alone.pop(task.device, None)
        if arrival.evaluated is not None:
            current.scored.append((Node(task.node, task.device), arrival.evaluated))
            return self._receipt(task.task, task.device, "accepted")
        reason = arrival.error or "an update answers no evaluate task"
        LOG.info("%s: did not evaluate: %s", task.device, reason)
        current.failed.append(f"{task.device}: {reason}")
        return self._receipt(task.task, task.device, "rejected", reason)

    def _receipt(self, task: bytes, device: str, outcome: Outcome, reason: str = "") -> bytes:
        """The receipt for a result (whose seq is 0), remembered for its next delivery."""
        payload = messages.encode(Receipt(task, 0, outcome, max(0, self._began_version), reason=reason[:MAX_TEXT]))
        self._receipts[task] = (device, payload)
        while len(self._receipts) > RECEIPTS_KEPT:
            self._receipts.popitem(last=False)
        return payload
