"""The gateway's MQTT session: connection, subscriptions, and acknowledgement in order."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.admission import Admission, Admitted
from gateway.backoff import Backoff
from gateway.connection import Connection, address, refusal
from gateway.counts import Counts
from gateway.deliveries import Deliveries
from gateway.publishing import Publishing, properties_of
from gateway.settings import Gateway
from pollen import topics
from pollen.bridge import Upload
from pollen.errors import PollenError

LOG = logging.getLogger("pollen.gateway.intake")

_UNSPECIFIED: Final = 0x80
_TAKEN_OVER: Final = 0x8E
# Two gateways of one name would throw each other out for ever: each stays away for so long, up to twice as long.
_TAKEN_OVER_S: Final = 15.0
_PAUSE_S: Final = 5.0  # how long nothing is read when limits.inflight_bytes are in flight


class Intake:
    """One MQTT 5 session with a stable client id, driven by the gateway's loop; no thread of its own.

    The loop watches `fileno` and calls `read`, `write` and `attend`. What arrives goes to
    `on_upload(upload)`, `on_state(device, payload)` and `on_vitals(device, payload)`. An update or result is
    acknowledged to the broker once `accept` was called for it and everything before it. `on_lost()`: the connection
    is gone, and what was not acknowledged comes again. `on_forgotten()`: the broker no longer knows the session it had
    with us, so it may have lost the retained models too.
    """

    def __init__(
        self,
        settings: Gateway,
        counts: Counts,
        *,
        on_upload: Callable[[Upload], None],
        on_state: Callable[[str, bytes], None],
        on_vitals: Callable[[str, bytes], None],
        on_lost: Callable[[], None],
        on_forgotten: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._counts = counts
        self._on_upload = on_upload
        self._on_state = on_state
        self._on_vitals = on_vitals
        self._on_lost = on_lost
        self._on_forgotten = on_forgotten
        self.admission = Admission(settings.limits, counts)
        self.deliveries = Deliveries()
        self.subscribed = False
        self._full_since: float | None = None
        self._draining = False
        self._unsubscribed = False
        self._leaving = False
        self._welcomed = False  # whether the broker ever accepted us
        self._hopeless: PollenError | None = None
        self._backoff = Backoff()
        self._attempt_at = 0.0
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._client.held = lambda: self.paused
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_unsubscribe = self._on_unsubscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self.publishing = Publishing(self._client, counts)

    def change(self, settings: Gateway) -> None:
        """Other settings from now on; another broker, or another Receive Maximum, with a new connection."""
        before, self._settings = self._settings, settings
        self.admission.change(settings.limits)
        if (before.broker, before.limits.receive_maximum) != (settings.broker, settings.limits.receive_maximum):
            self._connect_anew()

    def fileno(self) -> int | None:
        """The connection's file descriptor, None while there is no connection."""
        sock = self._client.socket()
        return None if sock is None else sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether `write` has something to do."""
        return self._client.want_write()

    @property
    def buffered(self) -> bool:
        """Whether there is something to read that poll doesn't see: TLS decrypts more than was asked for."""
        pending = getattr(self._client.socket(), "pending", None)
        return pending is not None and pending() > 0

    @property
    def paused(self) -> bool:
        """Whether nothing is to be read now, so much is in flight: TCP holds the broker back."""
        return self._full_since is not None and time.monotonic() - self._full_since < _PAUSE_S

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
            if not self.paused:  # the answer to a ping may be among what is not read
                self._client.loop_misc()
            for late in self.admission.late_states():
                self._on_state(late.device, late.payload)
            return 1.0
        if self._draining:
            return 1.0
        wait = self._attempt_at - time.monotonic()
        if wait > 0:
            return wait
        try:
            self._connection.attempt(self._settings)
        except (OSError, ValueError) as error:
            LOG.warning("broker at %s is not reachable: %s; trying again", self._address, error)
            self._attempt_at = time.monotonic() + self._backoff.wait_s()
        return 0.0

    def read(self) -> None:
        """Take what the broker has sent; called when the descriptor is readable, or something is `buffered`."""
        self._client.loop_read()

    def write(self) -> None:
        """Send what is queued; called when the descriptor is writable."""
        self._client.loop_write()

    def accept(self, numbers: tuple[int, ...]) -> None:
        """The server has accepted these deliveries."""
        for number in numbers:
            seconds = self.deliveries.accept(number)
            if seconds is not None:
                self._counts.accept(seconds)
        self._acknowledge()
        bound = self._settings.limits.inflight_bytes
        if self._full_since is not None and self.deliveries.bytes <= bound:
            self._full_since = None
        if self.deliveries.left and 2 * self.deliveries.bytes <= bound:
            LOG.info("%d updates that were left with the broker are fetched now", self.deliveries.left)
            self._connect_anew()

    def can_publish(self) -> bool:
        """Whether one more publish is within bounds now."""
        # What ends a pause may stand behind publishes, for whose acknowledgements, and SUBACK, nothing is read in it.
        return self.publishing.spare_room if self._full_since is not None else self.subscribed and self.publishing.room

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
        return address(self._settings.broker)

    def _connect_anew(self) -> None:
        """End the connection, but not the session, and begin another at once."""
        if self._draining:
            return
        if self.fileno() is not None:
            self._leaving = True
            self._client.disconnect()
            self._client.loop_write()
        self._attempt_at = 0.0

    def _shared(self) -> tuple[str, ...]:
        fleet, group = self._settings.fleet, self._settings.group
        leaves: tuple[topics.DeviceLeaf, ...] = ("update", "result", "vitals")
        return tuple(topics.shared(group, topics.device(fleet, "+", leaf)) for leaf in leaves)

    def _on_connect(
        self, client: Client, _userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            error, hopeless = refusal(self._settings.broker, reason)
            if hopeless and not self._welcomed:
                self._hopeless = error
            else:
                LOG.error("%s; trying again", error)
            return
        if self._welcomed and not flags.session_present:
            LOG.warning("broker at %s has lost its state; it gets the models again", self._address)
            self._on_forgotten()
        self._welcomed = True
        self._backoff.connected()
        self._counts.broker_connections += 1
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
        self._full_since = None
        self.deliveries.forget()
        self._on_lost()
        wait_s = self._backoff.wait_s()
        if reason.value == _TAKEN_OVER:
            wait_s = _TAKEN_OVER_S * (1.0 + secrets.SystemRandom().random())
        if not (self._leaving or self._draining or self._hopeless is not None):
            # Mosquitto 2.0 ends a connection that was taken over without a reason.
            hint = "; has another gateway the same name?" if reason.value in (_TAKEN_OVER, _UNSPECIFIED) else ""
            LOG.warning("connection to the broker at %s lost: %s%s", self._address, reason, hint)
        self._attempt_at = 0.0 if self._leaving else time.monotonic() + wait_s
        self._leaving = False

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        self.publishing.acknowledged(mid, reason)

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        try:
            self._take(message)
        except Exception:
            # One message must never stop the others; unacknowledged it would hold up all that come after it.
            LOG.exception("a message could not be handled; it is dropped")
            self._counts.refused["error"] += 1
            if message.qos:
                self.deliveries.add_finished(message.mid)
        self._acknowledge()

    def _take(self, message: MQTTMessage) -> None:
        payload = bytes(message.payload)  # no copy: it is bytes already
        admitted = self.admission.admit(message.topic, payload, qos=message.qos, again=message.dup)
        match admitted:
            case Admitted(leaf=("state" | "vitals") as leaf):
                (self._on_state if leaf == "state" else self._on_vitals)(admitted.device, admitted.payload)
            case Admitted():
                self._take_upload(message.mid, admitted)
                return
        if message.qos:
            self.deliveries.add_finished(message.mid)

    def _take_upload(self, mid: int, upload: Admitted) -> None:
        if self._full_since is None and not self.deliveries.left:
            self._on_upload(self.deliveries.add(mid, *upload))
            if self.deliveries.bytes > self._settings.limits.inflight_bytes:
                self._counts.pauses += 1
                self._full_since = time.monotonic()
            return
        # The pause is over, but its reason is not. What is read on for is all else: pings, acknowledgements, births.
        if not self.deliveries.left:
            LOG.warning(
                "%d bytes are in flight, over limits.inflight_bytes; what comes now stays with the broker",
                self.deliveries.bytes,
            )
        self.deliveries.leave(mid)

    def _acknowledge(self) -> None:
        for mid in self.deliveries.take_acknowledgeable():
            self._client.ack(mid, 1)
