"""GatewayLink: one model's fleet as seen through the gateways: who is online, what each has to do, what came back.

It holds nothing that must survive: after a restart births, open tasks and unacknowledged updates come again. Whatever
goes to devices may be sent twice; a device that has already done a task answers it again from its outbox.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pollen import messages
from pollen.bridge import Accepted, ModelMessage, ToDevice
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.messages import Head, Inference, Snapshot, Task, TaskKind
from pollen.signing import Kind, SigningKey, Subject
from server.bridge_service import Stream
from server.model import digest
from server.roster import Roster
from server.rules.rule import Vector
from server.tasks import OpenTask

# Uploads that may wait for the merge loop; beyond either bound gRPC holds the gateways back.
INBOX_UPLOADS: Final = 1024
INBOX_BYTES: Final = 256 * 1024 * 1024
RESEND_CHECK_S: Final = 1.0
TASK_ID_WITHIN: Final = 256  # bytes of an upload: short keys come first in canonical CBOR


@dataclass(frozen=True, slots=True)
class Delivery:
    """An upload as a gateway handed it over; `leaf` is update, result or oversize."""

    stream: Stream
    number: int
    device: str
    leaf: str
    payload: bytes


class GatewayLink:
    """Speaks to the devices of one model, whose uploads a `GatewayHub` brings. All methods may be called by any thread.

    task_ttl_s: an unanswered task is sent again after so many seconds. With `signing_key` what is published is signed.
    """

    def __init__(
        self, bundle: Bundle, roster: Roster, task_ttl_s: float, signing_key: SigningKey | None = None
    ) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.model
        self.started = False  # whether the tasks of an earlier process are known: a model is published after them
        self.closed = False
        self.update_limit_bytes = 16 * 1024 * 1024  # larger updates are refused unread
        self._task_ttl_s = task_ttl_s
        self._key = signing_key
        self._roster = roster
        self._changed = roster.changed
        self._inbox: deque[Delivery] = deque()
        self._inbox_bytes = 0
        self._open: dict[str, dict[TaskKind, OpenTask]] = {}  # by device: one of a kind
        self._answered: dict[str, bytes] = {}  # each device's last, or what it had open at the end
        self._sent_at: dict[tuple[str, TaskKind], float] = {}
        # An inference graph of an earlier run, whose versions may have been others, is taken back.
        self._models = {
            "bundle": ModelMessage(
                self.name, "bundle", replace(bundle, signature=self._sign("bundle", 0, bundle.digest)).to_bytes()
            ),
            "infer": ModelMessage(self.name, "infer", b""),
        }
        self._resend_checked_at = 0.0

    # --- what the owner of the model asks for

    @property
    def roster_version(self) -> int:
        """Grows whenever a device comes or goes."""
        return self._roster.version

    def online(self) -> list[str]:
        """Names of the devices that are online and train this model."""
        with self._changed:
            return self._roster.online(self.name)

    def device_of(self, node: int) -> str | None:
        """The device behind a Flower node id, None when it was never seen."""
        return self._roster.names.get(node)

    def is_blocked(self, device: str) -> bool:
        """Whether `device` is locked out, and what it sends is to be refused unread."""
        return device in self._roster.blocked

    def waiting(self) -> tuple[int, int]:
        """Uploads that wait for the merge loop, and their bytes."""
        return len(self._inbox), self._inbox_bytes

    def take_over(self, task_ttl_s: float, update_limit_bytes: int) -> None:
        """Settings that have changed: see GatewayGrid."""
        self._task_ttl_s, self.update_limit_bytes = task_ttl_s, update_limit_bytes

    def publish(self, version: int, weights: Vector) -> None:
        """Make `weights` [P] the retained snapshot that devices train from."""
        fingerprint = digest(weights)
        tensors = named(weights, self.bundle.manifest.shared)
        signature = self._sign("weights", version, fingerprint)
        snapshot = messages.encode(Snapshot(self.name, version, fingerprint, tensors, signature))
        head = messages.encode(Head(self.name, version, fingerprint, self.bundle.digest, len(snapshot), time.time()))
        with self._changed:
            self._models["weights"] = ModelMessage(self.name, "weights", snapshot)
            self._models["head"] = ModelMessage(self.name, "head", head)
            # Retained, so once is enough; but a gateway may have a stream here and no broker at the moment.
            for stream in self._roster.streams:
                stream.put(self._models["weights"], self._models["head"])
            if not self.started:
                self.started = True
                self._changed.notify_all()

    def publish_inference(self, message: Inference) -> None:
        """Make `message` the retained graph that devices predict with."""
        signature = self._sign("infer", message.version, message.digest)
        frame = ModelMessage(self.name, "infer", messages.encode(replace(message, signature=signature)))
        with self._changed:
            self._models["infer"] = frame
            for stream in self._roster.streams:
                stream.put(frame)

    def assign(self, tasks: Iterable[OpenTask]) -> None:
        """Give tasks to devices, replacing the open one of the same kind; they are sent again until they are closed."""
        with self._changed:
            for task in tasks:
                self._open.setdefault(task.device, {})[task.kind] = task
                self._roster.names[task.node] = task.device
                if self._is_online(task.device):
                    self._send_task(task)

    def take(self, timeout_s: float, limit: int = 256) -> list[Delivery]:
        """Uploads that have come in, at most `limit`, waiting up to `timeout_s` seconds for one or for a change of the
        roster."""
        self._resend_overdue()
        with self._changed:
            if not self._inbox and timeout_s > 0:
                seen = self._roster.version
                self._changed.wait_for(lambda: self._inbox or self._closing or self._roster.version != seen, timeout_s)
            taken = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
            self._inbox_bytes -= sum(len(delivery.payload) for delivery in taken)
            self._changed.notify_all()
            return taken

    def settle(self, settled: Sequence[tuple[Delivery, bytes | None]]) -> None:
        """Let the gateways forget these deliveries, and send the receipts."""
        accepted: dict[int, list[int]] = {}
        streams: dict[int, Stream] = {}
        with self._changed:
            for delivery, _ in settled:
                streams[id(delivery.stream)] = delivery.stream
                accepted.setdefault(id(delivery.stream), []).append(delivery.number)
            for key, numbers in accepted.items():
                streams[key].put(Accepted(tuple(numbers)))
            for delivery, receipt in settled:
                if receipt is not None:
                    delivery.stream.put(ToDevice(delivery.device, "receipt", receipt))

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries that were taken and not settled back where they were."""
        with self._changed:
            here = [delivery for delivery in deliveries if delivery.stream in self._roster.streams]
            self._inbox.extendleft(reversed(here))
            self._inbox_bytes += sum(len(delivery.payload) for delivery in here)

    def forget_tasks(self) -> None:
        """Stop sending any task; what still answers one is known as this model's."""
        with self._changed:
            for device, tasks in self._open.items():
                last = tasks.get("train") or next(iter(tasks.values()), None)
                if last is not None:
                    self._answered[device] = last.task
            self._open.clear()
            self._sent_at.clear()

    def close_tasks(self, tasks: Iterable[tuple[str, bytes]]) -> None:
        """Stop sending the (device, task id) pairs: they are answered or given up."""
        with self._changed:
            for device, task in tasks:
                self._answered[device] = task
                known = self._open.get(device, {})
                for kind in [kind for kind, other in known.items() if other.task == task]:
                    del known[kind]
                    self._sent_at.pop((device, kind), None)

    def close(self) -> None:
        """Decide nothing any more: devices send again what gets no receipt, until a server decides it.

        The gateways may forget it all the same. They acknowledge in the order in which things came, so whatever waits
        for a model that has ended would hold up the others.
        """
        with self._changed:
            self.closed = True
            for delivery in self._inbox:
                delivery.stream.put(Accepted((delivery.number,)))
            self._inbox.clear()
            self._inbox_bytes = 0
            self._changed.notify_all()

    def _sign(self, kind: Kind, version: int, fingerprint: bytes) -> bytes | None:
        subject = Subject(kind, self.name, version, fingerprint, self.bundle.digest)
        return None if self._key is None else self._key.sign(subject)

    # --- what the hub brings; it holds the lock

    def knows(self, delivery: Delivery) -> bool:
        """Whether `delivery` answers a task that was given for this model: its 16 random bytes are in the payload."""
        start = delivery.payload[:TASK_ID_WITHIN]
        answered = self._answered.get(delivery.device)
        return (answered is not None and answered in start) or any(
            task.task in start for task in self._open.get(delivery.device, {}).values()
        )

    def has_task_for(self, device: str) -> bool:
        """Whether `device` has an open task of this model."""
        return bool(self._open.get(device))

    def receive(self, delivery: Delivery) -> None:
        """Take in an upload, waiting until there is room for it."""
        self._changed.wait_for(self._has_room)
        if self.closed:
            delivery.stream.put(Accepted((delivery.number,)))
            return
        self._inbox_bytes += len(delivery.payload)
        self._inbox.append(delivery)
        self._changed.notify_all()

    def greet(self, stream: Stream) -> None:
        """Send the model to a gateway that has just connected."""
        stream.put(*self._models.values())

    def greet_device(self, device: str, stream: Stream | None = None) -> None:
        """Send a device that has just come its open tasks, through `stream` or whichever leads to it."""
        if self._is_online(device):
            for task in self._open.get(device, {}).values():
                self._send_task(task, stream)

    def lost(self, stream: Stream) -> None:
        """A gateway left: what it may not have passed on goes out again through another."""
        self._inbox = deque(delivery for delivery in self._inbox if delivery.stream is not stream)
        self._inbox_bytes = sum(len(delivery.payload) for delivery in self._inbox)
        for device, tasks in self._open.items():
            if self._is_online(device):
                for task in tasks.values():
                    self._send_task(task)

    # --- the caller holds the lock

    @property
    def _closing(self) -> bool:
        return self.closed or self._roster.closing

    def _has_room(self) -> bool:
        return (len(self._inbox) < INBOX_UPLOADS and self._inbox_bytes < INBOX_BYTES) or self._closing

    def _is_online(self, device: str) -> bool:
        return self._roster.is_online(device, self.name)

    def _send_task(self, task: OpenTask, stream: Stream | None = None) -> None:
        stream = stream or self._roster.stream_to(task.device)
        if stream is None:
            return  # a gateway that comes brings its roster, and each birth in it brings the task
        self._sent_at[task.device, task.kind] = time.monotonic()
        payload = messages.encode(
            Task(task.task, task.kind, self.name, task.version, self.bundle.digest, task.config, self._task_ttl_s)
        )
        frame = ToDevice(task.device, "task", payload, max(1, int(self._task_ttl_s)))
        stream.put(frame, replacing=(task.device, self.name, task.kind))

    def _resend_overdue(self) -> None:
        now = time.monotonic()
        if now - self._resend_checked_at < min(RESEND_CHECK_S, self._task_ttl_s / 2):
            return
        self._resend_checked_at = now
        with self._changed:
            for (device, kind), sent_at in list(self._sent_at.items()):
                if now - sent_at >= self._task_ttl_s and self._is_online(device):
                    # Through another gateway where there is one: the last may have lost its broker.
                    self._send_task(self._open[device][kind], self._roster.detour_to(device))
