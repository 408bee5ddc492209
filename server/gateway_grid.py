"""GatewayGrid: Flower's Grid whose nodes are MQTT devices behind gateways.

An unmodified Flower strategy runs on it: a message's arrays are published as the model's snapshot, the message itself
becomes a task, and a device's delta comes back as whole arrays (base + delta). AsyncServer uses its `link` directly and
gets the deltas themselves.
"""

import hashlib
import logging
import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from flwr.app import ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from pollen import messages
from pollen.bundle import Bundle
from pollen.errors import MessageError
from pollen.fields import MAX_TEXT
from pollen.identity import node_id
from pollen.messages import Receipt, Scalar, TaskKind
from pollen.signing import SigningKey
from server import flower_private, flower_replies
from server.arrays import flatten
from server.bridge_service import Listen
from server.delivery import Reply, read
from server.flower_private import Run
from server.gateway_hub import GatewayHub
from server.gateway_link import Delivery
from server.model import GlobalModel
from server.rules.rule import Vector
from server.tasks import OpenTask, new_task_id

LOG = logging.getLogger("pollen.server.gateway_grid")

CLIENT_FAILED: Final = 2  # flwr's ErrorCode for a ClientApp that raised
NO_REPLY: Final = 3  # and for a message whose time to live has passed
REPLIES_KEPT: Final = 1024  # that were pushed for and never pulled; each may hold a whole model
_KINDS: Final[dict[str, TaskKind]] = {
    MessageType.TRAIN: "train",
    MessageType.EVALUATE: "evaluate",
    MessageType.QUERY: "query",
}
_POLL_S: Final = 0.5
_REPLY_TTL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Open:
    """A message that waits for its device's reply. `expires_at`: by the monotonic clock."""

    message: Message
    task: OpenTask
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Answered:
    """A device's last answer: the task, the digest of a payload that could not be read, and the receipt's payload."""

    task: bytes
    fingerprint: bytes
    receipt: bytes


class GatewayGrid(Grid):
    """A Grid over the devices of one fleet that train `bundle`'s model; a context manager that closes it.

    Gateways dial in at `listen` (port 0: a free one; see `port`), or with `hub` at that one, which serves several
    models: then fleet and listen are the hub's, and closing the Grid leaves the hub open. task_ttl_s: seconds after
    which an unanswered task is sent to its device again. update_limit_bytes: larger updates are refused unread. With
    `signing_key` models are signed, for devices that take no others.

    What a strategy gets, whatever a device sends: for a train message the arrays and the metrics `num-examples` and
    `train_loss`, for an evaluate message `num-examples`, `eval_loss` and `eval_error`, for a query `num-examples` and
    the device's own metrics; a reply that lacks one of them, or holds anything unusable, becomes an Error.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        fleet: str = "default",
        listen: Listen | None = None,
        hub: GatewayHub | None = None,
        task_ttl_s: float = 600.0,
        update_limit_bytes: int = 16 * 1024 * 1024,
        signing_key: SigningKey | None = None,
    ) -> None:
        self._hub = hub or GatewayHub(fleet=fleet, listen=listen)
        self._owns_hub = hub is None
        self.link = self._hub.add(bundle, task_ttl_s, signing_key)
        self.link.update_limit_bytes = update_limit_bytes
        if self._owns_hub:
            self._hub.start()
        self._run = flower_private.empty_run(uuid.uuid4().int >> 65)
        flower_private.ensure_task_identity(self._run.run_id)
        self._tensors = bundle.manifest.shared
        self._model = GlobalModel(self._tensors, bundle.shared)
        self._published = b""
        self._open: dict[str, _Open] = {}  # by message id, as the replies
        self._replies: OrderedDict[str, Message] = OrderedDict()
        self._answered: dict[str, _Answered] = {}  # by device
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The TCP port that gateways dial."""
        return self._hub.port

    def initial_arrays(self) -> ArrayRecord:
        """The bundle's weights, as a strategy's `initial_arrays`."""
        return flower_replies.record(self.link.bundle.shared, self._tensors)

    def close(self) -> None:
        """Stop listening for gateways; who waits for replies gets those that are there. May be called again."""
        if not self._closed:
            self._closed = True
            if self._owns_hub:
                self._hub.close()
            else:
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
        old one is refused. The newest 1,024 replies that are not pulled are kept. Raises ValueError, naming the tensor,
        for arrays that do not fit the devices' model or are not finite, and for a message with more than one
        ArrayRecord or a train message with none; then nothing of `messages` is waited for.
        """
        pushed: list[str] = []
        with self._lock:
            try:
                pushed.extend(self._push(message) for message in messages)  # keeps those before the one that fails
            except ValueError:
                self._forget(pushed)
                raise
        return pushed

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
        """Send `messages` and wait up to `timeout` seconds for their replies; later ones are refused."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and not self._closed and (left := deadline - time.monotonic()) > 0:
            with self._lock:
                self._take(min(_POLL_S, left))
                replies += [self._replies.pop(message_id) for message_id in waiting & self._replies.keys()]
                waiting &= self._open.keys()
        with self._lock:
            replies += [self._replies.pop(message_id) for message_id in waiting & self._replies.keys()]
            self._forget(waiting)
        return replies

    # --- from Flower to devices

    def _push(self, message: Message) -> str:
        device = self.link.device_of(message.metadata.dst_node_id)
        kind = _KINDS.get(message.metadata.message_type.partition(".")[0])
        if device is None or kind is None:
            return ""
        self._publish_arrays(message.content, kind)
        config: dict[str, Scalar] = {}
        for record in message.content.config_records.values():
            config.update({name: value for name, value in record.items() if isinstance(value, int | float | str)})
        message_id = uuid.uuid4().hex
        for old in [i for i, waiting in self._open.items() if waiting.task.device == device]:
            self._fail(old, NO_REPLY, "replaced by a newer message to the same device")
        task = OpenTask(
            new_task_id(), message.metadata.dst_node_id, device, kind, self._model.version, time.time(), config
        )
        self._open[message_id] = _Open(message, task, time.monotonic() + message.metadata.ttl)
        self.link.assign([task])
        return message_id

    def _publish_arrays(self, content: RecordDict, kind: TaskKind) -> None:
        records = list(content.array_records.values())
        if len(records) > 1 or (kind == "train" and not records):
            raise ValueError(f"a {kind} message with {len(records)} ArrayRecords; the devices have one model")
        for record in records:
            try:
                weights = flatten([array.numpy() for array in record.values()], self._tensors)
            except MessageError as error:
                raise ValueError(f"the message's arrays: {error}") from error
            self._publish(weights)

    def _publish(self, weights: Vector) -> None:
        """Publish `weights` [P] as the next version, unless they are what was published last."""
        content = weights.tobytes()
        if content == self._published:
            return
        self._model.weights[:] = weights
        if self._published:
            self._model.advance()
        self._published = content
        self._model.publish()
        self.link.publish(self._model.version, self._model.weights)

    # --- from devices to Flower

    def _take(self, timeout_s: float) -> None:
        settled = [(delivery, self._receive(delivery)) for delivery in self.link.take(timeout_s)]
        self.link.settle(settled)
        now = time.monotonic()
        for message_id in [i for i, waiting in self._open.items() if waiting.expires_at <= now]:
            self._fail(message_id, NO_REPLY, "no reply within the message's time to live")

    def _receive(self, delivery: Delivery) -> bytes | None:
        """File the reply in `delivery`; returns the receipt's payload, None when nothing is known to be answered."""
        reply = read(delivery, self.link.update_limit_bytes)
        fingerprint = b"" if reply.task is not None else hashlib.sha256(delivery.payload).digest()
        answered = self._answered.get(delivery.device)
        if answered is not None and (answered.task, answered.fingerprint) == (reply.task or answered.task, fingerprint):
            return answered.receipt
        current = next((item for item in self._open.items() if item[1].task.device == delivery.device), None)
        if reply.task is not None and (current is None or current[1].task.task != reply.task):
            reason = "unknown task: it was never given to this device, or was answered or replaced long ago"
            return self._refusal(delivery.device, reply.task, reply.seq, reason)
        if current is None:
            LOG.warning("%s: refused: %s", delivery.device, reply.error)
            return None
        message_id, waiting = current
        task = waiting.task.task
        try:
            answer = flower_replies.content(reply, waiting.task.kind, waiting.message.content, self._model)
        except MessageError as error:
            receipt = self._refusal(delivery.device, task, reply.seq, str(error)[:MAX_TEXT])
            self._fail(message_id, CLIENT_FAILED, str(error)[:MAX_TEXT])
        except Exception:
            # A decoder must raise nothing else; if one does, this reply is refused and the fleet goes on.
            LOG.exception("%s: a %s could not be decoded", delivery.device, delivery.leaf)
            reason = f"the {delivery.leaf} could not be decoded"
            receipt = self._refusal(delivery.device, task, reply.seq, reason)
            self._fail(message_id, CLIENT_FAILED, reason)
        else:
            receipt = messages.encode(self._accepted(task, reply))
            self._reply(message_id, answer)
        self._answered[delivery.device] = _Answered(task, fingerprint, receipt)
        return receipt

    def _accepted(self, task: bytes, reply: Reply) -> Receipt:
        version = self._model.version
        if reply.update is None:
            return Receipt(task, reply.seq, "accepted", version)
        return Receipt(task, reply.seq, "merged", version, 1.0, version - reply.update.base)

    def _refusal(self, device: str, task: bytes, seq: int, reason: str) -> bytes:
        LOG.warning("%s: refused: %s", device, reason)
        return messages.encode(Receipt(task, seq, "rejected", self._model.version, reason=reason))

    def _reply(self, message_id: str, content: RecordDict) -> None:
        self._file(message_id, Message(content, reply_to=self._close(message_id), ttl=_REPLY_TTL_S))

    def _fail(self, message_id: str, code: int, reason: str) -> None:
        self._file(message_id, Message(Error(code, reason), reply_to=self._close(message_id), ttl=_REPLY_TTL_S))

    def _file(self, message_id: str, reply: Message) -> None:
        self._replies[message_id] = reply
        while len(self._replies) > REPLIES_KEPT:
            dropped, _ = self._replies.popitem(last=False)
            LOG.warning("the reply to message %s was never pulled and is dropped", dropped)

    def _close(self, message_id: str) -> Message:
        waiting = self._open.pop(message_id)
        self.link.close_tasks([(waiting.task.device, waiting.task.task)])
        return flower_private.with_id(waiting.message, message_id)

    def _forget(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these replies any more."""
        for message_id in message_ids:
            self._replies.pop(message_id, None)
            if message_id in self._open:
                self._close(message_id)
