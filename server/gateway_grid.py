"""GatewayGrid: Flower's Grid whose nodes are MQTT devices behind gateways.

An unmodified Flower strategy runs on it: a message's arrays are published as the model's snapshot, the message itself
becomes a task, and a device's delta comes back as whole arrays (base + delta). AsyncServer uses its `link` directly and
gets the deltas themselves.
"""

import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pollen import messages
from pollen.bundle import Bundle
from pollen.encoding import decode_into, named, parameters
from pollen.errors import MessageError
from pollen.identity import node_id
from pollen.messages import Receipt, Scalar, TaskKind, Update
from server import flower_private
from server.bridge_service import Listen
from server.flower_private import Run
from server.gateway_link import Delivery, GatewayLink, unreadable
from server.model import GlobalModel
from server.rules.rule import Vector
from server.tasks import OpenTask, new_task_id

CLIENT_FAILED: Final = 2  # flwr's ErrorCode for a ClientApp that raised
NO_REPLY: Final = 3  # and for a message whose time to live has passed
_KINDS: Final[dict[str, TaskKind]] = {
    MessageType.TRAIN: "train",
    MessageType.EVALUATE: "evaluate",
    MessageType.QUERY: "query",
}
_POLL_S: Final = 0.5


class GatewayGrid(Grid):
    """A Grid over the devices of one fleet that train `bundle`'s model.

    Gateways dial in at `listen` (port 0: a free one; see `port`). task_ttl_s: seconds after which an unanswered task is
    sent to its device again. update_limit_bytes: larger updates are refused unread. Close it when done.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        fleet: str = "default",
        listen: Listen | None = None,
        task_ttl_s: float = 600.0,
        update_limit_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.link = GatewayLink(bundle, fleet, listen or Listen(), task_ttl_s)
        self.update_limit_bytes = update_limit_bytes
        self._run = flower_private.empty_run(uuid.uuid4().int >> 65)
        flower_private.ensure_task_identity(self._run.run_id)
        self._tensors = bundle.manifest.weights
        self._model = GlobalModel(self._tensors, bundle.weights)
        self._published = b""
        self._asked: dict[str, Message] = {}
        self._tasks: dict[str, OpenTask] = {}
        self._replies: dict[str, Message] = {}
        self._answered: dict[str, tuple[bytes, bytes]] = {}  # by device: its last task and the receipt it got
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The TCP port that gateways dial."""
        return self.link.port

    def initial_arrays(self) -> ArrayRecord:
        """The bundle's weights, as a strategy's `initial_arrays`."""
        return _record(self.link.bundle.weights, self._tensors)

    def close(self) -> None:
        """Stop listening for gateways."""
        self.link.close()

    # --- Flower's Grid

    def set_run(self, run: Run) -> None:
        """Take the Run that a Flower launcher made."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Run this Grid is used in."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message for one device; see flwr.serverapp.Grid."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the devices that are online."""
        return [node_id(device) for device in self.link.online()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message as a task; returns its id, or "" where the node was never seen.

        A device has one open task: a message to a device that still has one replaces it, and the late answer to the
        old one is refused.
        """
        with self._lock:
            return [self._push(message) for message in messages]

    def pull_messages(
        self, message_ids: Iterable[str] = (), *, reply_to_message_ids: Iterable[str] = ()
    ) -> Iterable[Message]:
        """The replies that are there for `message_ids`, each once; an error for a message whose time has passed.

        Flower is about to rename the argument to `reply_to_message_ids`; both are taken.
        """
        with self._lock:
            self._take(0.0)
            return [self._replies.pop(i) for i in [*message_ids, *reply_to_message_ids] if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send `messages` and wait up to `timeout` seconds for their replies."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            with self._lock:
                self._take(_POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic())))
                here = waiting & self._replies.keys()
                replies += [self._replies.pop(message_id) for message_id in here]
                waiting -= here
        return replies

    # --- from Flower to devices

    def _push(self, message: Message) -> str:
        device = self.link.device_of(message.metadata.dst_node_id)
        kind = _KINDS.get(message.metadata.message_type.partition(".")[0])
        if device is None or kind is None:
            return ""
        for arrays in message.content.array_records.values():
            self._publish(_flat(arrays, parameters(self._tensors)))
        config: dict[str, Scalar] = {}
        for record in message.content.config_records.values():
            config.update({name: value for name, value in record.items() if isinstance(value, int | float | str)})
        message_id = uuid.uuid4().hex
        for old in [i for i, task in self._tasks.items() if task.device == device]:
            self._fail(old, NO_REPLY, "replaced by a newer message to the same device")
        task = OpenTask(
            new_task_id(), message.metadata.dst_node_id, device, kind, self._model.version, time.time(), config
        )
        self._asked[message_id] = message
        self._tasks[message_id] = task
        self.link.assign([task])
        return message_id

    def _publish(self, weights: Vector) -> None:
        """Publish `weights` [P] as the next version, unless they are what was published last."""
        content = weights.tobytes()
        if content == self._published:
            return
        if self._published:
            self._model.version += 1
        self._published = content
        self._model.weights[:] = weights
        self.link.publish(self._model.version, self._model.publish())

    # --- from devices to Flower

    def _take(self, timeout_s: float) -> None:
        settled = []
        answered = []
        for delivery in self.link.take(timeout_s):
            receipt = self._read(delivery)
            settled.append((delivery, receipt))
            if receipt is not None:
                task = messages.decode_receipt(receipt).task
                answered.append((delivery.device, task))
                self._answered[delivery.device] = (task, receipt)
        self.link.close_tasks(answered)
        self.link.settle(settled)
        now = time.time()
        for message_id, message in list(self._asked.items()):
            if message.metadata.created_at + message.metadata.ttl < now:
                self.link.close_tasks([(self._tasks[message_id].device, self._tasks[message_id].task)])
                self._fail(message_id, NO_REPLY, "no reply within the message's time to live")

    def _read(self, delivery: Delivery) -> bytes | None:
        """File the reply in `delivery`; returns the receipt's payload, None when nothing is known to be answered."""
        current = next((item for item in self._tasks.items() if item[1].device == delivery.device), None)
        version = self._model.version
        try:
            if delivery.leaf == "update":
                update = messages.decode_update(delivery.payload, self.update_limit_bytes)
                task, seq = update.task, update.seq
            elif delivery.leaf == "result":
                update, seq = None, 0
                result = messages.decode_result(delivery.payload)
                task = result.task
            else:
                raise MessageError(f"nothing is known of a {delivery.leaf} message")
        except MessageError as error:
            if current is None:
                return None
            reason = unreadable(delivery, error)
            self._fail(current[0], CLIENT_FAILED, reason)
            return messages.encode(Receipt(current[1].task, 0, "rejected", version, reason=reason))
        if self._answered.get(delivery.device, (b"", b""))[0] == task:
            return self._answered[delivery.device][1]
        if current is None or current[1].task != task:
            reason = "unknown task: it was never given to this device, or was answered or replaced long ago"
            return messages.encode(Receipt(task, seq, "rejected", version, reason=reason))
        message_id, open_task = current
        try:
            if update is None:
                if result.error:
                    raise MessageError(result.error)
                self._reply(message_id, self._result_content(message_id, result.samples, result.metrics))
                return messages.encode(Receipt(task, seq, "accepted", version))
            content = self._update_content(message_id, open_task, update)
        except MessageError as error:
            self._fail(message_id, CLIENT_FAILED, str(error))
            return messages.encode(Receipt(task, seq, "rejected", version, reason=str(error)))
        self._reply(message_id, content)
        return messages.encode(Receipt(task, seq, "merged", version, 1.0, version - update.base))

    def _update_content(self, message_id: str, task: OpenTask, update: Update) -> RecordDict:
        base = self._model.snapshot(update.base)
        if task.kind != "train" or update.samples < 1:
            raise MessageError("an update answers a train task and needs at least 1 sample")
        if base is None:
            raise MessageError(f"base version {update.base} was never issued or is no longer kept")
        trained = np.empty_like(base)
        decode_into(trained, update.delta, self._tensors)
        trained += base
        asked = self._asked[message_id].content
        if flower_private.is_legacy(asked):
            weights = list(named(trained, self._tensors).values())
            return flower_private.fit_answer(weights, update.samples, dict(update.metrics))
        arrays = next(iter(asked.array_records))
        names = list(asked.array_records[arrays])
        metrics: dict[str, Any] = {"num-examples": update.samples, **update.metrics}
        return RecordDict({arrays: _record(trained, self._tensors, names), "metrics": MetricRecord(metrics)})

    def _result_content(self, message_id: str, samples: int, metrics: Any) -> RecordDict:
        if flower_private.is_legacy(self._asked[message_id].content):
            return flower_private.evaluate_answer(float(metrics.get("loss", 0.0)), samples, dict(metrics))
        return RecordDict({"metrics": MetricRecord({"num-examples": samples, **metrics})})

    def _reply(self, message_id: str, content: RecordDict) -> None:
        self._replies[message_id] = Message(content, reply_to=self._close(message_id))

    def _fail(self, message_id: str, code: int, reason: str) -> None:
        # A ttl is given because Flower derives none for a message that has already run out of time.
        self._replies[message_id] = Message(Error(code, reason), reply_to=self._close(message_id), ttl=1.0)

    def _close(self, message_id: str) -> Message:
        del self._tasks[message_id]
        asked = self._asked.pop(message_id)
        return flower_private.with_id(asked, message_id)


def _flat(arrays: ArrayRecord, size: int) -> Vector:
    """All arrays of a record end to end, float32 [P]; ValueError when they are not `size` numbers."""
    flat = np.concatenate([np.asarray(array.numpy(), np.float32).ravel() for array in arrays.values()])
    if flat.size != size:
        raise ValueError(f"the message's arrays hold {flat.size} numbers, the devices' model {size}")
    return flat


def _record(weights: Vector, tensors: Any, names: list[str] | None = None) -> ArrayRecord:
    views = named(weights, tensors)
    return ArrayRecord({name: Array(view) for name, view in zip(names or views, views.values(), strict=True)})
