"""The MQTT client of a gateway: made once, and brought up to date before every attempt to connect."""

import logging
import ssl
from typing import Final

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from gateway.held_client import HeldClient
from gateway.publishing import properties_of
from gateway.settings import Gateway
from pollen.broker import Broker
from pollen.errors import PollenError

LOG = logging.getLogger("pollen.gateway.connection")
_PAHO_LOG: Final = logging.getLogger("pollen.gateway.paho")

# CONNACK reasons (MQTT 5, section 3.2.2.2) that waiting doesn't cure.
_HOPELESS: Final = {
    0x84: "it speaks no MQTT 5; use Mosquitto 2 or another MQTT 5 broker",
    0x85: "it doesn't accept the client id; change name",
    0x86: "user name or password is wrong; correct broker.username and broker.password",
    0x87: "user name or password is wrong; correct broker.username and broker.password",
    0x8A: "this client is banned there",
    0x8C: "it wants another authentication method; give broker.certificate and broker.key",
}
_CONNECT_S: Final = 5.0  # for the loop stands still meanwhile


def _tells_no_packet(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


_PAHO_LOG.addFilter(_tells_no_packet)  # a SUBSCRIBE names the group, which is a secret


class Connection:
    """The client, and how it reaches the broker. What it has yet to publish outlives its connections."""

    def __init__(self, settings: Gateway) -> None:
        self._context = settings.broker.tls_context()
        self.client = HeldClient(
            CallbackAPIVersion.VERSION2,
            client_id=settings.name,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        # paho would re-raise what a callback raises, and end the loop; so it is only logged.
        self.client.suppress_exceptions = True
        self.client.enable_logger(_PAHO_LOG)
        self.client.connect_timeout = _CONNECT_S
        if self._context is not None:
            self.client.tls_set_context(self._context)

    def attempt(self, settings: Gateway) -> None:
        """Connect with the settings, and the certificate files, as they are now. Raises OSError and ValueError."""
        broker = settings.broker
        self._read_certificates(broker)
        self.client.username_pw_set(broker.username or None, broker.password or None)
        self.client.connect_async(
            broker.host,
            broker.port,
            broker.keepalive_s,
            clean_start=False,
            properties=properties_of(
                PacketTypes.CONNECT,
                SessionExpiryInterval=settings.session_expiry_s,
                ReceiveMaximum=settings.limits.receive_maximum,
            ),
        )
        self.client.reconnect()

    def _read_certificates(self, broker: Broker) -> None:
        """Take over renewed files. While they can't be read, those of the last attempt are as good as they were."""
        if self._context is None or broker.ca is None:
            return
        try:
            self._context.load_verify_locations(broker.ca)
            if broker.certificate is not None and broker.key is not None:
                self._context.load_cert_chain(broker.certificate, broker.key)
        except (OSError, ssl.SSLError) as error:
            LOG.error("broker.ca, certificate or key can't be read again: %s; going on with the former ones", error)


def refusal(broker: Broker, reason: ReasonCode) -> tuple[PollenError, bool]:
    """What a CONNACK of failure says, and whether there is no hope that waiting cures it."""
    why = _HOPELESS.get(reason.value, str(reason))
    return PollenError(f"broker at {address(broker)} refused the connection: {why}"), reason.value in _HOPELESS


def address(broker: Broker) -> str:
    """Host and port, for people."""
    return f"{broker.host}:{broker.port}"
