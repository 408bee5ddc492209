"""Values that other devices publish on a local MQTT broker: Home Assistant, zigbee2mqtt, Tasmota, ESPHome."""

import logging
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.channel_list import described, listed
from edge_client.sensors.json_path import document, plain_value, value_at
from edge_client.sensors.options import parse
from edge_client.sensors.skipped import Skipped
from pollen.broker import Broker
from pollen.errors import SensorError

LOG = logging.getLogger(__name__)

PAYLOAD_BYTES: Final = 65536
_PACKET_OVERHEAD_BYTES: Final = 65536 + 1024  # a topic may be that long
_ANSWER_S: Final = 10.0
_LOOP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """`channels`: "name=topic" for payloads that are a number, "name=topic:path" for JSON, where the path after the
    last colon is keys and positions joined by dots, as in "kitchen=zigbee2mqtt/kitchen:temperature"; several separated
    by commas. `units` and `ranges`: such as "°C, %" and "-40..85, 0..100", "" for none. `stale_s`: a value this old
    counts no more, 0: never. `retained`: also take values the broker has kept, whose age nobody knows. `host`, `port`,
    `username`, `password` and `ca` (a PEM file, for TLS): the broker with these topics."""

    channels: str
    units: str = ""
    ranges: str = ""
    stale_s: float = 300.0
    retained: bool = False
    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if not self.stale_s >= 0.0:
            raise ValueError(f"stale_s = {self.stale_s} must be 0 or more")
        if not self.sources():
            raise ValueError(
                "channels is empty; name them, such as channels = 'kitchen=zigbee2mqtt/kitchen:temperature'"
            )
        self.described()
        self.broker()

    def sources(self) -> list[tuple[str, str, str]]:
        """Name, topic and path of each channel."""
        sources = []
        for part in listed("channels", self.channels):
            name, equals, source = (text.strip() for text in part.partition("="))
            topic, _, path = source.rpartition(":") if ":" in source else (source, "", "")
            if not name or not equals or not topic:
                raise ValueError(f"channels: {part!r} must be like name=topic or name=topic:path")
            if {"+", "#", "\0"} & set(topic) or len(topic.encode()) > 65535:
                raise ValueError(f"channels: {topic!r} must be one topic, without wildcards")
            sources.append((name, topic, path))
        names = [name for name, _, _ in sources]
        if len({*names}) < len(names):
            raise ValueError(f"channels = {self.channels!r} has a name twice")
        return sources

    def described(self) -> tuple[Channel, ...]:
        """The channels with their units and ranges."""
        return described([name for name, _, _ in self.sources()], self.units, self.ranges)

    def broker(self) -> Broker:
        """Where the topics are."""
        ca = Path(self.ca) if self.ca else None
        return Broker(self.host, self.port, self.username, self.password, ca, plain=ca is None)


def payload_values(payload: bytes, paths: list[str]) -> list[float | None]:
    """The numbers at `paths` of one message, "" for all of it: None for what it says nothing of, NaN for no number."""
    if len(payload) > PAYLOAD_BYTES:
        return [math.nan] * len(paths)
    text = payload.decode(errors="replace")
    found = document(text) if any(paths) else None
    if found is None:
        return [math.nan if path else plain_value(text) for path in paths]
    return [value_at(found, path) if path else plain_value(text) for path in paths]


class MqttSensor:
    """The last value of each channel while it is younger than `stale_s`, else NaN; None when nothing new came.

    A message that says nothing of a channel leaves its value; one that says something else than a number makes it NaN.

    A thread of its own keeps the connection. When that is lost, `read` raises SensorError and the sensor is opened
    again. Raises SensorError when the broker is not there, or refuses the connection or a topic.
    """

    def __init__(self, options: Options) -> None:
        self._options = parse(MqttOptions, options)
        self._channels = self._options.described()
        self._places: dict[str, list[tuple[int, str]]] = {}
        for place, (_, topic, path) in enumerate(self._options.sources()):
            self._places.setdefault(topic, []).append((place, path))
        self._where = f"broker {self._options.host}:{self._options.port}"
        self._skipped = Skipped(f"messages from {self._where}")
        self._lock = threading.Lock()  # of the three that follow
        self._values = [math.nan] * len(self._channels)
        self._arrived = [-math.inf] * len(self._channels)
        self._fresh = False
        self._failure = ""
        self._answered = threading.Event()
        self._closing = threading.Event()
        client = self._connected()
        self._thread = threading.Thread(target=self._run, args=(client,), name="mqtt-sensor", daemon=True)
        self._thread.start()
        if not self._answered.wait(_ANSWER_S):
            self._failure = "no answer"
        if self._failure:
            self.close()
            raise SensorError(f"{self._where}: {self._failure}")

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As named in the options."""
        return self._channels

    def read(self) -> Reading | None:
        """One sample. SensorError when the connection is lost."""
        if self._failure:
            raise SensorError(f"{self._where}: {self._failure}")
        oldest = time.monotonic() - (self._options.stale_s or math.inf)
        with self._lock:
            if not self._fresh:
                return None
            self._fresh = False
            values = [
                value if arrived > oldest else math.nan
                for value, arrived in zip(self._values, self._arrived, strict=True)
            ]
        return Reading(np.array([values], np.float32))

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._closing.set()
        self._thread.join(timeout=4 * _LOOP_S)
        self._failure = self._failure or "the sensor is closed"

    def _connected(self) -> Client:
        """A client that has a connection, and hasn't been answered yet."""
        broker = self._options.broker()
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        context = broker.tls_context()
        if context is not None:
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.suppress_exceptions = True
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = PAYLOAD_BYTES + _PACKET_OVERHEAD_BYTES
        try:
            client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=True, properties=properties)
        except (OSError, ValueError) as error:
            raise SensorError(f"{self._where} can't be reached: {error}; check sensor.options.host and port") from error
        return client

    def _run(self, client: Client) -> None:
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        try:
            while code == MQTTErrorCode.MQTT_ERR_SUCCESS and not self._closing.is_set():
                code = client.loop(timeout=_LOOP_S)
            client.disconnect()
        except Exception:  # whatever a hostile peer makes paho do
            LOG.exception("%s: the MQTT client failed", self._where)
        finally:
            self._fail("the connection is lost")
            socket = client.socket()
            if socket is not None:
                socket.close()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._answered.set()

    def _on_connect(
        self, client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._fail(f"it refused the connection ({reason}); check sensor.options.username and password")
            return
        keep = (
            SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if self._options.retained else SubscribeOptions.RETAIN_DO_NOT_SEND
        )
        options = SubscribeOptions(qos=0, retainHandling=keep)
        client.subscribe([(topic, options) for topic in self._places])

    def _on_subscribe(
        self, _client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        refused = [topic for topic, reason in zip(self._places, reasons, strict=False) if reason.is_failure]
        if refused:
            self._fail(f"it refused topic {refused[0]!r}; check its access rules for {self._options.username!r}")
        self._answered.set()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        places = self._places.get(message.topic, [])
        values = payload_values(bytes(message.payload), [path for _, path in places])
        now = time.monotonic()
        with self._lock:
            for (place, _), value in zip(places, values, strict=True):
                if value is not None:
                    self._values[place], self._arrived[place] = value, now
                    self._fresh = True
        wrong = any(value is not None and math.isnan(value) for value in values)
        self._skipped.add(int(wrong), f"on {message.topic}: no number where one should be")
