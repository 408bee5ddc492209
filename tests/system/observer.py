"""A client that may read everything: which updates went over the broker, and which receipts came back."""

from collections import Counter
from threading import Lock
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from pollen import messages, topics
from pollen.errors import MessageError
from pollen.messages import Receipt

LIMIT = 10**8


class Observer:
    """Counts `updates` by (device, task, seq) and `receipts` by (device, receipt). It misses what goes by while the
    broker, or the connection to it, is down."""

    def __init__(self, port: int, fleet: str) -> None:
        self._lock = Lock()
        self._updates: Counter[tuple[str, bytes, int]] = Counter()
        self._receipts: Counter[tuple[str, Receipt]] = Counter()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="observer", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("observer", "secret-observer")
        self._client.reconnect_delay_set(1, 1)
        leaves: tuple[topics.DeviceLeaf, ...] = ("update", "receipt")
        subscriptions = [(topics.device(fleet, "+", leaf), 1) for leaf in leaves]
        self._client.on_connect = lambda client, *_: client.subscribe(subscriptions)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def updates(self) -> Counter[tuple[str, bytes, int]]:
        """How often each update was published."""
        with self._lock:
            return self._updates.copy()

    def receipts(self) -> Counter[tuple[str, Receipt]]:
        """How often each receipt was published."""
        with self._lock:
            return self._receipts.copy()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        topic = topics.parse_device(message.topic)
        if topic is None:
            return
        payload = bytes(message.payload)
        try:
            with self._lock:
                if topic.leaf == "update":
                    update = messages.decode_update(payload, LIMIT)
                    self._updates[topic.device, update.task, update.seq] += 1
                else:
                    self._receipts[topic.device, messages.decode_receipt(payload)] += 1
        except MessageError:
            return  # hostile payloads are the server's business
