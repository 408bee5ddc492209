"""A device with valid credentials that sends whatever it likes."""

import ssl
import threading
import time
from types import TracebackType
from typing import Any, Self

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from pollen import cbor, messages, topics
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.messages import Birth, Receipt, Session, Task, Update

DEADLINE_S = 15.0


class HostileDevice:
    """A plain MQTT client that shows the certificate of `name` and says that it is a device; `client_id`: what it calls
    itself."""

    def __init__(self, name: str, port: int, fleet: str, context: ssl.SSLContext, client_id: str = "") -> None:
        self.name = name
        self._fleet = fleet
        self._changed = threading.Condition()
        self._received: list[tuple[str, bytes]] = []
        self._answers: dict[int, ReasonCode] = {}
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or name, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.tls_set_context(context)
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        subscriptions = [(topics.device(fleet, name, leaf), 1) for leaf in topics.TO_DEVICE]
        self._client.on_connect = lambda client, *_: client.subscribe(subscriptions)
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def __enter__(self) -> Self:
        assert self._subscribed.wait(DEADLINE_S)
        birth = Birth(Session(self.name.encode().ljust(8)[:8], 1))
        assert self.publish("state", messages.encode(birth)).value < 0x80
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, leaf: topics.DeviceLeaf, payload: bytes, *, device: str | None = None) -> ReasonCode:
        """Publish on an own topic, or on `device`'s; returns the broker's answer."""
        info = self._client.publish(topics.device(self._fleet, device or self.name, leaf), payload, qos=1)
        with self._changed:
            assert self._changed.wait_for(lambda: info.mid in self._answers, DEADLINE_S), "no PUBACK"
            return self._answers[info.mid]

    def flood(self, leaf: topics.DeviceLeaf, payload: bytes, count: int, per_s: float) -> None:
        """Publish `count` times, `per_s` a second, and wait for none of the answers."""
        started = time.monotonic()
        for number in range(count):
            self._client.publish(topics.device(self._fleet, self.name, leaf), payload, qos=1)
            time.sleep(max(0.0, started + number / per_s - time.monotonic()))

    def subscribe(self, topic: str) -> None:
        """Ask for more than a device may have."""
        self._client.subscribe(topic, 1)

    def others(self) -> list[str]:
        """Leaves of messages that came and are neither a task nor a receipt of its own."""
        with self._changed:
            return [leaf for leaf, _ in self._received if leaf not in topics.TO_DEVICE]

    def task(self) -> Task:
        """The task that the server gave this device."""
        return messages.decode_task(self._take("task"))

    def receipt(self) -> Receipt:
        """The next receipt."""
        return messages.decode_receipt(self._take("receipt"))

    def _take(self, leaf: str) -> bytes:
        deadline = time.monotonic() + DEADLINE_S
        with self._changed:
            while True:
                for entry in self._received:
                    if entry[0] == leaf:
                        self._received.remove(entry)
                        return entry[1]
                assert self._changed.wait(max(0.0, deadline - time.monotonic())), f"{self.name} got no {leaf}"

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._changed:
            self._received.append((message.topic.rpartition("/")[2], bytes(message.payload)))
            self._changed.notify_all()

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _: Any) -> None:
        with self._changed:
            self._answers[mid] = reason
            self._changed.notify_all()


def update(bundle: Bundle, task: Task, /, **changes: Any) -> bytes:
    """An update in order, but for `changes` of its fields."""
    delta = named(np.full(bundle.manifest.shared_size, 1e-4, np.float32), bundle.manifest.shared)
    fields: dict[str, Any] = {
        "task": task.task,
        "seq": 1,
        "base": task.version,
        "samples": 8,
        "steps": 1,
        "delta": dict(delta),
    }
    return messages.encode(Update(**(fields | changes)))


def with_tensor(bundle: Bundle, change: np.ndarray) -> dict[str, Any]:
    """A delta whose first tensor is `change`."""
    delta: dict[str, Any] = dict(named(np.zeros(bundle.manifest.shared_size, np.float32), bundle.manifest.shared))
    delta[bundle.manifest.shared[0].name] = change
    return delta


def with_version(value: Any) -> bytes:
    """A message whose version is anything."""
    return cbor.encode({"v": value, "task": b"t" * 16})
