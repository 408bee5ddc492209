"""Publishing to the broker within bounds."""

import logging
from functools import lru_cache
from typing import Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.counts import Counts

LOG = logging.getLogger("pollen.gateway.publishing")

# What may be published and not yet acknowledged by the broker; paho would queue in memory without an end.
MAX_PUBLISHES: Final = 250
MAX_WAITING: Final = 10_000
MAX_PUBLISH_BYTES: Final = 16 * 1024 * 1024
_NO_BOUND: Final = 2**32 - 1
_PACKET_OVERHEAD: Final = 64  # fixed header, packet identifier and properties, rounded up


class Publishing:
    """The publishes of QoS 1 that the broker has not acknowledged. They outlive a connection: paho sends them again."""

    def __init__(self, client: Client, counts: Counts) -> None:
        """For a `client` that is not connected, and was never told to connect."""
        self._counts = counts
        client.max_inflight_messages_set(MAX_PUBLISHES)
        self._client = client
        self._bytes_of: dict[int, int] = {}  # by packet identifier
        self._bytes = 0
        self._most = MAX_PUBLISHES
        self._packet_bytes = _NO_BOUND

    def __len__(self) -> int:
        return len(self._bytes_of)

    @property
    def room(self) -> bool:
        """Whether one more is within bounds now; a single message may be larger than the bound on bytes."""
        return len(self._bytes_of) < self._most and self._bytes < MAX_PUBLISH_BYTES

    @property
    def spare_room(self) -> bool:
        """Whether one more may at least wait in memory, though the broker won't take it before others."""
        return len(self._bytes_of) < MAX_WAITING and self._bytes < MAX_PUBLISH_BYTES

    def connected(self, properties: Any) -> None:
        """Take over what the broker's CONNACK allows: Receive Maximum and Maximum Packet Size."""
        self._most = min(MAX_PUBLISHES, getattr(properties, "ReceiveMaximum", MAX_PUBLISHES))
        self._packet_bytes = getattr(properties, "MaximumPacketSize", _NO_BOUND)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int = 0) -> None:
        """Publish `payload`; one that the broker would end the connection for is left out, and logged."""
        if len(payload) + len(topic) + _PACKET_OVERHEAD > self._packet_bytes:
            LOG.error(
                "%s: %d bytes are over the broker's packet limit of %d; raise the limit there",
                topic,
                len(payload),
                self._packet_bytes,
            )
            return
        info = self._client.publish(topic, payload, 1, retain, _expiry(expiry_s) if expiry_s > 0 else None)
        # NO_CONN: paho has kept it and sends it after the reconnect.
        if info.rc in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            self._bytes_of[info.mid] = len(payload)
            self._bytes += len(payload)
            self._counts.send(topic.rpartition("/")[2], len(payload))
        else:
            LOG.error("%s: could not be published: %s", topic, info.rc.name)

    def acknowledged(self, mid: int, reason: ReasonCode) -> None:
        """The broker has answered the publish with this packet identifier."""
        self._bytes -= self._bytes_of.pop(mid, 0)
        if reason.is_failure:
            LOG.error("the broker refused a publish: %s; check its access rules for gateways", reason)


def properties_of(packet: int, **values: int) -> Properties:
    """MQTT 5 properties by name, for a packet of type `packet`."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


@lru_cache(maxsize=64)
def _expiry(seconds: int) -> Properties:
    return properties_of(PacketTypes.PUBLISH, MessageExpiryInterval=seconds)
