"""What becomes of each arrival: merged, rejected, or answered again with the first receipt."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pollen import messages
from pollen.fields import MAX_TEXT
from pollen.messages import TASK_ID_BYTES, Receipt
from server.async_strategy import AsynchronousStrategy
from server.fleet import Settled
from server.guard import Arrival, RefusedError, admit
from server.history import AsyncHistory, Merge
from server.model import GlobalModel
from server.store import Answer, StateStore
from server.tasks import OpenTask


@dataclass(slots=True)
class Group:
    """What one pass of the merge loop has decided and not yet committed."""

    settled: list[Settled] = field(default_factory=list)
    answers: dict[bytes, Answer] = field(default_factory=dict)  # by task
    merges: list[Merge] = field(default_factory=list)
    rejections: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # devices whose open task came to nothing


class Decisions:
    """Decides arrivals one by one, merging what is admitted into the model; nothing is durable before the commit."""

    def __init__(
        self, model: GlobalModel, strategy: AsynchronousStrategy, store: StateStore, history: AsyncHistory
    ) -> None:
        self._model = model
        self._strategy = strategy
        self._store = store
        self._history = history
        self._delta = np.empty_like(model.weights)

    def decide(self, arrival: Arrival, open_tasks: Mapping[str, OpenTask], group: Group) -> None:
        """Enter into `group` what becomes of `arrival`; `open_tasks` by device, those `group` answered among them."""
        open_task = open_tasks.get(arrival.device)
        if open_task is not None and open_task.task in group.answers:
            open_task = None
        if arrival.task is None:
            self._decide_unreadable(arrival, open_task, group)
        elif open_task is None or open_task.task != arrival.task:
            group.settled.append(Settled(arrival, self._repeat(arrival, arrival.task, group)))
        else:
            self._decide_open(arrival, arrival.task, group)

    def _decide_open(self, arrival: Arrival, task: bytes, group: Group) -> None:
        try:
            staleness = admit(arrival, self._model, self._delta)
        except RefusedError as refusal:
            self._reject(arrival, task, str(refusal), group)
            return
        base = self._model.snapshot(arrival.base) if arrival.base_weights is None else arrival.base_weights
        merged = self._strategy.merge(self._model.weights, self._delta, base, staleness, arrival.samples)
        self._model.version += 1
        version, weight = self._model.version, float(merged.weight)
        receipt = Receipt(task, arrival.seq, "merged", version, weight, staleness, merged.remark)
        self._answer(arrival, task, receipt, group)
        group.merges.append(
            Merge(
                elapsed_s=self._history.elapsed_s(),
                version=version,
                device=arrival.device,
                staleness=staleness,
                samples=arrival.samples,
                steps=arrival.steps,
                weight=weight,
                delta_norm=float(np.sqrt(np.dot(self._delta, self._delta))),
                size_bytes=arrival.size_bytes,
                metrics=arrival.metrics,
            )
        )

    def _decide_unreadable(self, arrival: Arrival, open_task: OpenTask | None, group: Group) -> None:
        """A payload nobody can read answers the device's open task, or the device would send it for ever.

        The payload's digest is kept as if it were a task's id: delivered again, it gets the same receipt, and does not
        answer the task that is open by then.
        """
        fingerprint = hashlib.sha256(arrival.payload).digest()[:TASK_ID_BYTES]
        known = group.answers.get(fingerprint) or self._store.answer(fingerprint)
        if known is not None and known.device == arrival.device:
            group.settled.append(Settled(arrival, known.receipt))
        elif open_task is None:
            group.rejections.append((arrival.device, arrival.error))
            group.settled.append(Settled(arrival, None))
        else:
            self._reject(arrival, open_task.task, arrival.error, group)
            if known is None:
                receipt = group.answers[open_task.task].receipt
                group.answers[fingerprint] = Answer(fingerprint, arrival.device, 0, receipt)

    def _reject(self, arrival: Arrival, task: bytes, reason: str, group: Group) -> None:
        reason = reason[:MAX_TEXT]
        group.rejections.append((arrival.device, reason))
        group.failed.append(arrival.device)
        self._answer(arrival, task, Receipt(task, arrival.seq, "rejected", self._model.version, reason=reason), group)

    def _answer(self, arrival: Arrival, task: bytes, receipt: Receipt, group: Group) -> None:
        payload = messages.encode(receipt)
        group.answers[task] = Answer(task, arrival.device, arrival.seq, payload)
        group.settled.append(Settled(arrival, payload))

    def _repeat(self, arrival: Arrival, task: bytes, group: Group) -> bytes:
        """The receipt for a reply to a task that isn't open: the first one again, or a rejection."""
        known = group.answers.get(task) or self._store.answer(task)
        if known is None or known.device != arrival.device:
            reason = "unknown task: it was never given to this device, or was answered long ago"
            group.rejections.append((arrival.device, reason))
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
