"""Labels from an MQTT topic: a button's press, or what somebody says of an earlier time."""

import logging
import threading
from collections import deque
from typing import Final

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_client.clock import Clock
from edge_client.learning.labels import LabelEvent, parse
from edge_client.settings import EdgeSettings
from pollen.errors import MessageError

LOG = logging.getLogger(__name__)

RECONNECT_MAX_S: Final = 120
MAX_PACKET_BYTES: Final = 4096
STOP_S: Final = 2.0
WAITING: Final = 64  # labels that may wait for the agent; the oldest goes first


class LabelTopic:
    """A client of its own on `[labels] broker`, so that the fleet's broker needs no further access rules.

    Retained messages are not taken: nobody knows when they were true. Labels sent while there is no connection are
    lost, since a label without times is about the moment it comes. `refused` counts messages that are no label.
    `wake` is set whenever `take` has something. Raises SettingsError when the certificates can't be used.
    """

    def __init__(self, settings: EdgeSettings, clock: Clock, wake: threading.Event) -> None:
        self._settings = settings.labels
        self._clock = clock
        self._wake = wake
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._labels: deque[LabelEvent] = deque(maxlen=WAITING)
        self.refused = 0
        broker = settings.labels.broker
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"{settings.device}-labels", protocol=MQTTProtocolVersion.MQTTv5
        )
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        context = broker.tls_context()
        if context is not None:
            client.tls_set_context(context)
        client.reconnect_delay_set(1, RECONNECT_MAX_S)
        client.suppress_exceptions = True
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client

    def start(self) -> None:
        """Start connecting; a broker that isn't there is tried again for ever."""
        broker = self._settings.broker
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client.connect_async(broker.host, broker.port, broker.keepalive_s, properties=properties)
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)
        self._thread.start()

    def take(self) -> list[LabelEvent]:
        """Remove and return the labels that came, oldest first."""
        return [self._labels.popleft() for _ in range(len(self._labels))]

    def stop(self) -> None:
        """Disconnect."""
        self._closing.set()
        self._client.disconnect()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._client.loop_forever(retry_first_connection=True)
            except Exception:  # the thread must outlive whatever a hostile broker makes paho do
                LOG.exception("the MQTT client of the labels failed; connecting again")
                self._closing.wait(1.0)

    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            LOG.error("labels.broker refused us: %s; check labels.broker.username and password", reason)
            return
        client.subscribe(
            self._settings.topic,
            options=SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND),
        )

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            LOG.error("labels.topic = %r: the broker doesn't let us read it; check its access rules",
                      self._settings.topic)  # fmt: skip

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.retain:
            return
        try:
            self._labels.append(parse(bytes(message.payload), self._clock.monotonic(), self._settings))
        except MessageError as error:
            self.refused += 1
            # A device that floods us must not fill the log.
            LOG.log(logging.WARNING if self.refused == 1 else logging.DEBUG, "%s", error)
        else:
            self._wake.set()
