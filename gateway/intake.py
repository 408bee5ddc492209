"""The gateway's MQTT session: connection, subscriptions, and acknowledgement in order."""

import logging
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.backoff import Backoff
from gateway.deliveries import Deliveries
from gateway.publishing import Publishing, properties_of
from gateway.settings import Gateway
from pollen import topics
from pollen.bridge import Upload
from pollen.errors import PollenError

LOG = logging.getLogger("pollen.gateway.intake")

# CONNACK reasons (MQTT 5, section 3.2.2.2) that waiting doesn't cure.
_HOPELESS: Final = {
    0x84: "it speaks no MQTT 5; use Mosquitto 2 or another MQTT 5 broker",
    0x85: "it doesn't accept the client id; change name",
    0x86: "user name or password is wrong; correct broker.username and broker.password",
    0x87: "user name or password is wrong; correct broker.username and broker.password",
    0x8A: "this client is banned there",
    0x8C: "it wants another authentication method; give broker.certificate and broker.key",
}
_TAKEN_OVER: Final = 0x8E


class Intake:
    """One MQTT 5 session with a stable client id, driven by the gateway's loop; no thread of its own.

    The loop watches `fileno` and calls `read`, `write` and `attend`. What arrives goes to
    `on_upload(upload)`, `on_state(device, payload)` and `on_vitals(device, payload)`. An update or result is
    acknowledged to the broker once `accept` was called for it and everything before it. `on_forgotten()`: the broker
    no longer knows the session it had with us, so it may have lost the retained models too.
    """

    def __init__(
        self,
        settings: Gateway,
        *,
        on_upload: Callable[[Upload], None],
        on_state: Callable[[str, bytes], None],
        on_vitals: Callable[[str, bytes], None],
        on_forgotten: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._on_upload = on_upload
        self._on_state = on_state
        self._on_vitals = on_vitals
        self._on_forgotten = on_forgotten
        self.ignored = 0  # messages dropped for their topic or size
        self.deliveries = Deliveries()
        self.subscribed = False
        self._draining = False
        self._unsubscribed = False
        self._welcomed = False  # whether the broker ever accepted us
        self._hopeless: PollenError | None = None
        self._backoff = Backoff()
        self._attempt_at = 0.0
        self._client = self._make_client()
        self.publishing = Publishing(self._client)
        self._client.connect_async(
            settings.broker.host,
            settings.broker.port,
            settings.broker.keepalive_s,
            clean_start=False,
            properties=properties_of(
                PacketTypes.CONNECT,
                SessionExpiryInterval=settings.session_expiry_s,
                ReceiveMaximum=settings.limits.receive_maximum,
            ),
        )

    def fileno(self) -> int | None:
        """The connection's file descriptor, None while there is no connection."""
        sock = self._client.socket()
        return None if sock is None else sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether `write` has something to do."""
        return self._client.want_write()

    @property
    def drained(self) -> bool:
        """After `drain`: whether nothing new comes and everything that came is acknowledged."""
        if self.fileno() is None:
            return True
        return self._unsubscribed and not self.deliveries and not self.publishing and not self.wants_write

    def attend(self) -> float:
        """Connect when it is time to, keep the connection alive; returns seconds until it must be called again.

        Raises PollenError when the broker refuses the very first connection for good.
        """
        if self._hopeless is not None:
            raise self._hopeless
        if self._client.socket() is not None:
            self._client.loop_misc()
            return 1.0
        if self._draining:
            return 1.0
        wait = self._attempt_at - time.monotonic()
        if wait > 0:
            return wait
        try:
            self._client.reconnect()
        except (OSError, ValueError) as error:
            LOG.warning("broker at %s is not reachable: %s; trying again", self._address, error)
            self._attempt_at = time.monotonic() + self._backoff.wait_s()
        return 0.0

    def read(self) -> None:
        """Take what the broker has sent; called when the descriptor is readable."""
        self._client.loop_read()
        # With TLS, decrypted packets may be left where poll doesn't see them.
        while (pending := getattr(self._client.socket(), "pending", None)) is not None and pending():
            self._client.loop_read()

    def write(self) -> None:
        """Send what is queued; called when the descriptor is writable."""
        self._client.loop_write()

    def accept(self, numbers: tuple[int, ...]) -> None:
        """The server has accepted these deliveries."""
        for number in numbers:
            self.deliveries.accept(number)
        self._acknowledge()

    def can_publish(self) -> bool:
        """Whether one more publish is within bounds now."""
        return self.subscribed and self.publishing.room

    def drain(self) -> None:
        """Take no new updates: leave the shared subscriptions to the other gateways of the group."""
        self._draining = True
        if self.subscribed:
            self._client.unsubscribe(list(self._shared()))

    def disconnect(self) -> None:
        """Leave. When all is done the session ends with the connection, else the broker keeps it for a while."""
        if self.fileno() is None:
            return
        expiry_s = 0 if self.drained else self._settings.session_expiry_s
        self._client.disconnect(properties=properties_of(PacketTypes.DISCONNECT, SessionExpiryInterval=expiry_s))
        self._client.loop_write()

    @property
    def _address(self) -> str:
        return f"{self._settings.broker.host}:{self._settings.broker.port}"

    def _make_client(self) -> Client:
        broker = self._settings.broker
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._settings.name,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        # paho would re-raise what a callback raises, and end the loop; so it is only logged.
        client.suppress_exceptions = True
        client.enable_logger(LOG)
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        if (context := broker.tls_context()) is not None:
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _shared(self) -> tuple[str, ...]:
        fleet, group = self._settings.fleet, self._settings.group
        leaves: tuple[topics.DeviceLeaf, ...] = ("update", "result", "vitals")
        return tuple(topics.shared(group, topics.device(fleet, "+", leaf)) for leaf in leaves)

    def _on_connect(
        self, client: Client, _userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            why = _HOPELESS.get(reason.value, str(reason))
            refusal = PollenError(f"broker at {self._address} refused the connection: {why}")
            if reason.value in _HOPELESS and not self._welcomed:
                self._hopeless = refusal
            else:
                LOG.error("%s; trying again", refusal)
            return
        if self._welcomed and not flags.session_present:
            LOG.warning("broker at %s has lost its state; it gets the models again", self._address)
            self._on_forgotten()
        self._welcomed = True
        self._backoff.connected()
        self.publishing.connected(properties)
        update, result, vitals = self._shared()
        # State is not shared: every gateway keeps the whole roster, from the retained messages it gets here.
        state = topics.device(self._settings.fleet, "+", "state")
        qos_of = {update: 1, result: 1, state: 1, vitals: 0}
        client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in qos_of.items()])

    def _on_subscribe(
        self, _client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            LOG.error("broker at %s refused a subscription: %s; check its access rules", self._address, refused[0])
            return
        LOG.info("subscribed at the broker at %s", self._address)
        self.subscribed = True
        if self._draining:
            self.drain()

    def _on_unsubscribe(self, *_arguments: Any) -> None:
        self._unsubscribed = True

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self.subscribed = False
        self.deliveries.forget()
        self._attempt_at = time.monotonic() + self._backoff.wait_s()
        if reason.value == _TAKEN_OVER:
            LOG.error(
                "another client connected as %r; give each gateway a name, and a user name, of its own",
                self._settings.name,
            )
        elif not self._draining and self._hopeless is None:
            LOG.warning("connection to the broker at %s lost: %s", self._address, reason)

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        self.publishing.acknowledged(mid, reason)

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        try:
            self._take(message)
        except Exception:
            # One message must never stop the others; unacknowledged it would hold up all that come after it.
            LOG.exception("a message could not be handled; it is dropped")
            self.ignored += 1
            if message.qos:
                self.deliveries.add_finished(message.mid)
        self._acknowledge()

    def _take(self, message: MQTTMessage) -> None:
        topic = topics.parse_device(message.topic)
        payload = bytes(message.payload)  # no copy: it is bytes already
        leaf = "" if topic is None else topic.leaf
        if topic is not None and message.qos and leaf in ("update", "result"):
            if len(payload) > self._settings.limits.update_bytes:
                # The server answers the device's open task in its place, or it would send this for ever.
                leaf, payload = "oversize", b"%d %s" % (len(payload), sha256(payload).hexdigest().encode())
            self._on_upload(self.deliveries.add(message.mid, topic.device, leaf, payload))
            return
        if message.qos:
            self.deliveries.add_finished(message.mid)
        if topic is None or leaf not in ("state", "vitals") or len(payload) > self._settings.limits.message_bytes:
            self.ignored += 1
            LOG.debug("ignored %d bytes on %s", len(payload), message.topic)
        elif leaf == "state":
            self._on_state(topic.device, payload)
        else:
            self._on_vitals(topic.device, payload)

    def _acknowledge(self) -> None:
        for mid in self.deliveries.take_acknowledgeable():
            self._client.ack(mid, 1)
