"""What the demo sees of the running fleet: an MQTT client that listens to every device and says nothing."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties

from pollen import messages, topics
from pollen.errors import MessageError, PollenError

UPDATE_LIMIT_BYTES: Final = 256 * 1024 * 1024
_CONNECT_S: Final = 10.0


@dataclass(slots=True)
class Seen:
    """What was seen of one device. `open_task`: its train task that has no receipt yet, and when it was sent.

    `published`: the seq of each task's update that went over the broker; `outcomes`: each task's receipt, a
    repeated one ("duplicate") only where the first was missed.
    """

    online: bool = False
    vitals: dict[str, float] = field(default_factory=dict)
    open_task: bytes | None = None
    open_since: float = 0.0
    published: dict[bytes, int] = field(default_factory=dict)
    outcomes: dict[bytes, messages.Outcome] = field(default_factory=dict)


class Observer:
    """Listens with an observer's account. `devices` maps names to what was seen; read it under `lock`."""

    def __init__(self, port: int, username: str, password: str, fleet: str, names: list[str]) -> None:
        self.lock = threading.Lock()
        self.devices = {name: Seen() for name in names}
        self._fleet = fleet
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, username, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._port = port

    def __enter__(self) -> Self:
        try:
            self._client.connect("127.0.0.1", self._port)
        except OSError as error:
            raise PollenError(
                f"the broker on port {self._port} is not reachable for the demo's observer: {error}"
            ) from error
        self._client.loop_start()
        if not self._subscribed.wait(_CONNECT_S):
            self._client.loop_stop()
            raise PollenError(f"the broker on port {self._port} let the demo's observer not subscribe; see its log")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Properties | None) -> None:
        if not reason.is_failure:
            client.subscribe(f"{topics.ROOT}/{self._fleet}/d/#", qos=1)

    def _on_subscribe(self, _client: Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if not any(reason.is_failure for reason in reasons):
            self._subscribed.set()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        topic = topics.parse_device(message.topic)
        if topic is None or topic.device not in self.devices:
            return
        with self.lock:
            try:
                self._take(self.devices[topic.device], topic.leaf, bytes(message.payload))
            except MessageError:
                return  # the server answers for malformed messages; here it is only looked at

    def _take(self, seen: Seen, leaf: str, payload: bytes) -> None:
        if leaf == "state":
            seen.online = bool(payload) and isinstance(messages.decode_state(payload), messages.Birth)
        elif leaf == "vitals":
            seen.vitals = dict(messages.decode_vitals(payload).values)
        elif leaf == "task":
            task = messages.decode_task(payload)
            if task.kind == "train" and task.task != seen.open_task:
                seen.open_task, seen.open_since = task.task, time.time()
        elif leaf == "update":
            update = messages.decode_update(payload, UPDATE_LIMIT_BYTES)
            seen.published[update.task] = update.seq
        elif leaf == "receipt":
            receipt = messages.decode_receipt(payload)
            if receipt.outcome != "duplicate" or receipt.task not in seen.outcomes:
                seen.outcomes[receipt.task] = receipt.outcome
            if receipt.task == seen.open_task:
                seen.open_task = None
