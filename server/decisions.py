"""What becomes of each arrival: merged, rejected, or answered again with the first receipt."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pollen import messages
from pollen.fields import MAX_TEXT
from pollen.messages import TASK_ID_BYTES, Receipt
from server.async_strategy import AsynchronousStrategy
from server.devices import Devices
from server.fleet import Node, Settled
from server.guard import Admitted, Arrival, Guard, Kind, RefusedError
from server.history import AsyncHistory, Merge
from server.model import GlobalModel
from server.privacy import check_guard
from server.rules.rule import Merged, UnmergeableError
from server.store import Answer, StateStore
from server.tasks import OpenTask


@dataclass(frozen=True, slots=True)
class Timing:
    """When an update came, by the loop's clock in seconds: see `Incoming` of the merge rules."""

    now_s: float = 0.0
    turnaround_s: float = 0.0
    outstanding: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """What one pass of the merge loop has decided and not yet committed.

    changed: whether the model changed. held: nodes, by device, whose next task waits for the
    publication of a version that has their update, and which version that is.
    """

    settled: list[Settled] = field(default_factory=list)
    answers: dict[bytes, Answer] = field(default_factory=dict)  # by task
    merges: list[Merge] = field(default_factory=list)
    rejections: list[tuple[str, str, Kind]] = field(default_factory=list)  # device, reason, kind
    failed: list[str] = field(default_factory=list)  # devices whose open task came to nothing
    changed: bool = False
    held: dict[str, tuple[Node, int]] = field(default_factory=dict)


class Decisions:
    """Decides arrivals one by one, merging what is admitted into the model; nothing is durable before the commit."""

    def __init__(
        self,
        model: GlobalModel,
        strategy: AsynchronousStrategy,
        store: StateStore,
        history: AsyncHistory,
        devices: Devices,
        *,
        guard: Guard | None = None,
    ) -> None:
        self._model = model
        self.guard = guard or Guard()
        if strategy.privacy is not None:
            check_guard(self.guard.settings)
            strategy.privacy.check_merged(sum(counts.merged for counts in devices))
        self._strategy = strategy
        self._devices = devices
        self._store = store
        self._history = history
        self._delta = np.empty_like(model.weights)

    def decide(self, arrival: Arrival, open_tasks: Mapping[str, OpenTask], group: Group, timing: Timing) -> None:
        """Enter into `group` what becomes of `arrival`; `open_tasks` by device, those `group` answered among them."""
        open_task = open_tasks.get(arrival.device)
        if open_task is not None and open_task.task in group.answers:
            open_task = None
        if arrival.task is None:
            self._decide_unreadable(arrival, open_task, group)
        elif open_task is None or open_task.task != arrival.task:
            group.settled.append(Settled(arrival, self._repeat(arrival, arrival.task, group)))
        else:
            self._decide_open(arrival, open_task, group, timing)

    def drain(self) -> dict[str, Any]:
        """What rule, strategy and guard want kept of what was decided since the last call; see `Commit.kept`."""
        return self._strategy.drain() | self.guard.drain()

    def _decide_open(self, arrival: Arrival, open_task: OpenTask, group: Group, timing: Timing) -> None:
        task = open_task.task
        try:
            asked = self._strategy.rule.takes_residuals and open_task.config.get("upload") == "residual"
            if arrival.against is not None and not asked:  # the task may be older than the rule
                raise RefusedError("residual", "a residual, which the task did not ask for or the merge rule can't use")
            staleness, admitted, merged = self._merge(arrival, timing)
        except (RefusedError, UnmergeableError) as refusal:
            self._reject(arrival, task, refusal.kind, str(refusal), group)
            return
        if merged.changed:
            self._model.advance()
            group.changed = True
        if merged.hold:
            first = self._model.version if merged.changed else self._model.version + 1
            group.held[arrival.device] = Node(arrival.node, arrival.device), first
        version, weight = self._model.version, float(merged.weight)
        remark = "; ".join(filter(None, (admitted.remark, merged.remark)))[:MAX_TEXT]
        receipt = Receipt(task, arrival.seq, "merged", version, weight, staleness, remark)
        self._answer(arrival, task, receipt, group)
        self._devices.count_merged(arrival.device, arrival.samples, arrival.size_bytes)
        group.merges.append(
            Merge(
                elapsed_s=self._history.elapsed_s(),
                version=version,
                device=arrival.device,
                staleness=staleness,
                samples=arrival.samples,
                steps=arrival.steps,
                weight=weight,
                delta_norm=admitted.norm,
                size_bytes=arrival.size_bytes,
                metrics={k: v for k, v in arrival.metrics.items() if k not in ("loss_before", "loss_after")}
                | admitted.metrics,
                loss_before=arrival.metrics.get("loss_before"),
                loss_after=arrival.metrics.get("loss_after"),
                turnaround_s=timing.turnaround_s,
                base=arrival.base,
            )
        )

    def _merge(self, arrival: Arrival, timing: Timing) -> tuple[int, Admitted, Merged]:
        """Admit and merge `arrival`; returns its staleness in merges besides. Raises RefusedError, UnmergeableError."""
        staleness = self.guard.read(arrival, self._model, self._delta, timing.now_s)
        base = self._model.snapshot(arrival.base) if arrival.base_weights is None else arrival.base_weights
        in_seconds = self._strategy.staleness_unit == "seconds"
        age = self._model.age_s(arrival.base) if in_seconds else float(staleness)
        too_old = self._strategy.refusal(base, age)
        if too_old:
            raise RefusedError("staleness", too_old)
        admitted = self.guard.judge(arrival, self._delta)
        merged = self._strategy.merge(
            self._model.weights,
            self._delta,
            base,
            age,
            arrival.samples,
            client=arrival.device,
            clients=self._devices.will_contribute(arrival.device),
            task=arrival.task,
            against=arrival.against,
            now_s=timing.now_s,
            turnaround_s=timing.turnaround_s,
            outstanding=timing.outstanding,
        )
        return staleness, admitted, merged

    def _decide_unreadable(self, arrival: Arrival, open_task: OpenTask | None, group: Group) -> None:
        """A payload nobody can read answers the device's open task, or the device would send it for ever.

        The digest of device and payload is kept as if it were a task's id: delivered again, it gets the same receipt,
        and does not answer the task that is open by then.
        """
        fingerprint = hashlib.sha256(arrival.device.encode() + b"\0" + arrival.payload).digest()[:TASK_ID_BYTES]
        known = group.answers.get(fingerprint) or self._store.answer(fingerprint)
        if known is not None:
            group.settled.append(Settled(arrival, known.receipt))
        elif open_task is None:
            self._refuse(arrival.device, arrival.kind, arrival.error, group)
            group.settled.append(Settled(arrival, None))
        else:
            self._reject(arrival, open_task.task, arrival.kind, arrival.error, group)
            receipt = group.answers[open_task.task].receipt
            group.answers[fingerprint] = Answer(fingerprint, arrival.device, 0, receipt)

    def _reject(self, arrival: Arrival, task: bytes, kind: Kind, reason: str, group: Group) -> None:
        reason = reason[:MAX_TEXT]
        self._refuse(arrival.device, kind, reason, group)
        group.failed.append(arrival.device)
        self._answer(arrival, task, Receipt(task, arrival.seq, "rejected", self._model.version, reason=reason), group)

    def _refuse(self, device: str, kind: Kind, reason: str, group: Group) -> None:
        self._devices.count_refused(device, kind)
        group.rejections.append((device, reason, kind))

    def _answer(self, arrival: Arrival, task: bytes, receipt: Receipt, group: Group) -> None:
        payload = messages.encode(receipt)
        group.answers[task] = Answer(task, arrival.device, arrival.seq, payload)
        group.settled.append(Settled(arrival, payload))

    def _repeat(self, arrival: Arrival, task: bytes, group: Group) -> bytes:
        """The receipt for a reply to a task that isn't open: the first one again, or a rejection."""
        known = group.answers.get(task) or self._store.answer(task)
        if known is None or known.device != arrival.device:
            reason = "unknown task: it was never given to this device, or was answered long ago"
            self._refuse(arrival.device, "unknown-task", reason, group)
            return messages.encode(Receipt(task, arrival.seq, "rejected", self._model.version, reason=reason))
        if known.seq == arrival.seq:
            return known.receipt
        first = messages.decode_receipt(known.receipt)
        if first.outcome == "rejected":
            reason = f"the task was rejected before: {first.reason}"[:MAX_TEXT]
            return messages.encode(Receipt(task, arrival.seq, "rejected", first.version, reason=reason))
        reason = f"the task was answered by update {known.seq}"
        return messages.encode(
            Receipt(task, arrival.seq, "duplicate", first.version, first.weight, first.staleness, reason)
        )
