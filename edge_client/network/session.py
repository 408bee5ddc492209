"""The MQTT 5 session: one thread that stays connected for ever, and events for the agent's main loop.

Each connection gets a paho client of its own. Nothing is left in paho's memory from one connection to the next, so
what is sent after a reconnect is decided by the outbox alone.
"""

import logging
import random
import ssl
import threading
from collections import deque
from typing import Any, Final

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_client.clock import Clock
from edge_client.network.certificates import refused_certificate
from edge_client.network.events import Acknowledged, Connected, Event, Lost, ModelReceived, Received
from edge_client.settings import EdgeSettings
from pollen import messages, topics
from pollen.errors import PollenError

LOG = logging.getLogger(__name__)

RECEIVE_MAXIMUM: Final = 16
WAITING_EVENTS: Final = 256  # beyond that, messages are dropped
CONNACK_S: Final = 15.0
NO_MATCHING_SUBSCRIBERS: Final = 0x10  # a PUBACK's reason code, MQTT 5, section 3.4.2.1
DISCONNECT_WITH_WILL: Final = 0x04  # a DISCONNECT's reason code, section 3.14.2.1
UNSPECIFIED: Final = 0x80  # paho's reason where it knows none
STABLE_S: Final = 10.0  # a connection that lasted this long lets the next back-off start small again
# Besides the payload, a PUBLISH holds its topic (at most 4 names of 64) and properties.
PACKET_OVERHEAD_BYTES: Final = 1024


class MqttSession:
    """Keeps the device connected; `wake` is set whenever `events` has something. Used by one thread besides its own."""

    def __init__(self, settings: EdgeSettings, boot: bytes, clock: Clock, wake: threading.Event) -> None:
        self._settings = settings
        self._boot = boot
        self._clock = clock
        self._wake = wake
        self._own = {topics.device(settings.fleet, settings.device, leaf): leaf for leaf in topics.TO_DEVICE}
        leaves: tuple[topics.ModelLeaf, ...] = ("weights", "bundle", "infer")
        self._model_topics = {leaf: topics.model(settings.fleet, settings.model, leaf) for leaf in leaves}
        self._wanted: set[topics.ModelLeaf] = set()
        self._followed: set[topics.ModelLeaf] = {"infer"} if settings.inference.graph != "off" else set()
        self._events: deque[Event] = deque()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._client: Client | None = None  # of the connection that is up
        self._refused = ""
        self._ended = ""  # why this connection, which was up, is no more
        self.problem = ""  # why the last connection ended, or didn't begin
        self._random = random.Random()  # noqa: S311 - spreads reconnects, keeps no secret
        self._connection = 0
        self._says_goodbye = False
        self._checks_dates = True
        self.sent_bytes = 0
        self.received_bytes = 0
        self.reconnects = 0
        settings.broker.tls_context()  # fail at the start when the certificates can't be used

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it isn't known to be lost."""
        return self._client is not None

    def start(self) -> None:
        """Start connecting."""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def events(self) -> list[Event]:
        """Remove and return what has happened, oldest first."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def publish(self, leaf: topics.DeviceLeaf, payload: bytes, *, qos: int, retain: bool = False) -> int | None:
        """Publish on one of the device's own topics; a ticket for its `Acknowledged`, None when not connected."""
        client = self._client
        if client is None:
            return None
        topic = topics.device(self._settings.fleet, self._settings.device, leaf)
        info = client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        self.sent_bytes += len(payload)
        return info.mid

    def fetch(self, leaf: topics.ModelLeaf) -> None:
        """Ask for the retained message of a model topic; it comes as `ModelReceived`, also after a reconnect."""
        self._wanted.add(leaf)
        client = self._client
        if client is not None:
            self._subscribe_model(client, leaf)

    def cancel(self, leaf: topics.ModelLeaf) -> None:
        """Stop waiting for a model topic."""
        self._wanted.discard(leaf)
        client = self._client
        if client is not None:
            client.unsubscribe(self._model_topics[leaf])

    def stop(self, last_words: bytes, seconds: float) -> None:
        """Publish `last_words` (a death) on the state topic, disconnect, and end the thread."""
        client = self._client
        self._says_goodbye = client is not None
        self._closing.set()
        if client is not None:
            info = client.publish(
                topics.device(self._settings.fleet, self._settings.device, "state"), last_words, qos=1, retain=True
            )
            try:
                info.wait_for_publish(seconds)
            except (RuntimeError, ValueError) as error:
                LOG.debug("the death message was not sent: %s", error)
            client.disconnect()
        if self._thread is not None:
            self._thread.join(timeout=seconds)

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _run(self) -> None:
        limits = self._settings.session
        attempt = 0
        while not self._closing.is_set():
            started = self._clock.monotonic()
            self._refused = self._ended = ""
            ended = self._connect_once()
            self.problem = self._refused or ended
            if self._closing.is_set():
                return
            if self._clock.monotonic() - started > STABLE_S:
                attempt = 0
            bound = min(limits.reconnect_max_s, limits.reconnect_min_s * 2.0 ** min(attempt, 30))
            # Full jitter: a power cut brings the whole fleet back at the same moment.
            delay = self._random.uniform(0.0, bound)
            if self._refused:  # nothing but a person can change that
                delay = self._random.uniform(0.5, 1.0) * limits.reconnect_max_s
            attempt += 1
            where = f"{self._settings.broker.host}:{self._settings.broker.port}"
            level = logging.ERROR if self._refused else logging.WARNING
            LOG.log(level, "broker %s: %s; next try in %.1f s", where, self.problem, delay)
            self._clock.wait(self._closing, delay)

    def _connect_once(self) -> str:
        """One connection from start to end; why it ended."""
        self._connection += 1
        session = messages.Session(self._boot, self._connection)
        broker = self._settings.broker
        started = self._clock.monotonic()
        # What a wrong clock says of a certificate's dates is worth nothing, and would shut the device out for good.
        self._checks_dates = self._clock.synchronised() is not False
        try:
            client = self._new_client(session)
            properties = _properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = self._settings.session.expiry_s
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = self._settings.upload.snapshot_limit_bytes + PACKET_OVERHEAD_BYTES
            client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=False, properties=properties)
        except ssl.SSLCertVerificationError as error:
            return refused_certificate(error, broker, self._clock)
        except (OSError, ValueError, PollenError) as error:
            return str(error)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        try:
            while code == MQTTErrorCode.MQTT_ERR_SUCCESS:
                code = client.loop(timeout=1.0)
                if self._ended:  # of which paho's loop says nothing at once
                    break
                if self._closing.is_set() and not self._says_goodbye:
                    return "stopping before it was up"  # and without a word, so that the broker sends the will
                if self._client is None and self._clock.monotonic() - started > CONNACK_S:
                    return "no answer to CONNECT"
                if broker.ca is not None and not self._checks_dates and self._clock.synchronised() is not False:
                    # With the will: should the certificate be refused now, nobody else would say that we are gone.
                    client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=DISCONNECT_WITH_WILL))
                    client.loop()  # sends it
                    return "the clock is right now; connecting again to check the certificates' dates"
        except Exception:  # the thread must outlive whatever a hostile peer makes paho do
            LOG.exception("the MQTT client failed; connecting again")
        finally:
            self._down()
        return f"connection lost ({self._ended or client_error(code)})"

    def _new_client(self, session: messages.Session) -> Client:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.device,
            protocol=MQTTProtocolVersion.MQTTv5,
            userdata=session,
        )
        if settings.broker.username:
            client.username_pw_set(settings.broker.username, settings.broker.password)
        context = settings.broker.tls_context(check_dates=self._checks_dates)
        if context is not None:
            client.tls_set_context(context)
        will = _properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = settings.session.will_delay_s
        client.will_set(
            topics.device(settings.fleet, settings.device, "state"),
            messages.encode(messages.Death(session, "lost")),
            qos=1,
            retain=True,
            properties=will,
        )
        # Without it paho would write to the socket from the publishing thread while the network thread does.
        client.on_socket_register_write = _leave_writing_to_the_loop
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.suppress_exceptions = True
        return client

    def _on_connect(
        self, client: Client, session: Any, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refused = _refusal(str(reason), self._settings)
            return
        own = [(topic, SubscribeOptions(qos=1)) for topic in self._own]
        client.subscribe(own)
        for leaf in [*self._wanted, *self._followed]:
            self._subscribe_model(client, leaf)
        if self._connection > 1:
            self.reconnects += 1
        self._client = client
        largest = getattr(properties, "MaximumPacketSize", None)
        LOG.info("connected to %s:%d", self._settings.broker.host, self._settings.broker.port)
        connection: Any = client.socket()
        self._put(Connected(session, largest, "" if connection is None else str(connection.getsockname()[0])))

    def _subscribe_model(self, client: Client, leaf: topics.ModelLeaf) -> None:
        # QoS 0: should this subscription outlive a crash, the broker queues nothing for it.
        client.subscribe(self._model_topics[leaf], options=SubscribeOptions(qos=0))

    def _on_message(self, client: Client, _session: Any, message: MQTTMessage) -> None:
        payload = bytes(message.payload)
        self.received_bytes += len(payload)
        leaf = self._own.get(message.topic)
        if leaf is not None:
            if len(payload) > messages.SMALL_BYTES:
                LOG.warning("%s: a message of %d bytes was refused", message.topic, len(payload))
                return
            if len(self._events) < WAITING_EVENTS:
                self._put(Received(leaf, payload))
            else:  # the server sends again what matters
                LOG.debug("%s: a message was dropped, too many wait", message.topic)
            return
        for followed in self._followed:
            if message.topic == self._model_topics[followed]:
                self._put(ModelReceived(followed, payload))
                return
        client.unsubscribe(message.topic)
        for wanted in list(self._wanted):
            if message.topic == self._model_topics[wanted]:
                self._wanted.discard(wanted)
                self._put(ModelReceived(wanted, payload))

    def _on_publish(
        self, _client: Client, _session: Any, mid: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._put(Acknowledged(mid, str(reason) if reason.is_failure else "", reason.value != NO_MATCHING_SUBSCRIBERS))

    def _on_subscribe(
        self, _client: Client, _session: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                LOG.error("the broker refused a subscription: %s; check its access rules", reason)

    def _on_disconnect(
        self,
        _client: Client,
        _session: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        LOG.debug("disconnected: %s", reason)
        self._ended = "conn lost" if reason.value == UNSPECIFIED else str(reason).lower()
        self._down()

    def _down(self) -> None:
        if self._client is not None:
            self._client = None
            self._put(Lost())


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def _leave_writing_to_the_loop(_client: Client, _userdata: Any, _socket: Any) -> None:
    """Nothing to register: the loop's select sees what there is to write."""


def _refusal(reason: str, settings: EdgeSettings) -> str:
    if reason == "Unsupported protocol version":
        return "it speaks no MQTT 5, which Pollen needs; use Mosquitto 2"
    if reason in ("Not authorized", "Bad user name or password"):
        return f"it refused device {settings.device!r} ({reason}); check broker.username, password and certificate"
    return f"it refused the connection ({reason})"


def client_error(code: MQTTErrorCode) -> str:
    """paho's error as words."""
    return code.name.removeprefix("MQTT_ERR_").replace("_", " ").lower()
