"""What bounds the broker's memory, and the same for a fleet of a given size."""

from dataclasses import dataclass
from typing import Final, Self

PACKET_OVERHEAD: Final = 64 * 1024  # topic and properties around a payload
_MOST_QUEUED_BYTES: Final = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker takes and keeps; sizes in bytes, times in seconds.

    `message_bytes`: the largest payload, announced in CONNACK; it costs the sender its connection to exceed it.
    Generous, so that a device whose update is too large for the fleet hears so in a receipt. `queued_messages`,
    `queued_bytes`: how much may wait for one client, a gateway that is away above all; what exceeds it is
    dropped silently, and comes again from the device's outbox. `inflight`: unacknowledged QoS 1 messages towards
    a client that set no Receive Maximum, and the Receive Maximum that Mosquitto announces. `autosave_s`: seconds
    between two writes of the store; a killed broker loses what came since. `connections`: at most as many clients
    at a time, None: as many as there are file descriptors. `keepalive_s`: the longest silence of a client before the
    broker takes it for dead. `session_expiry_s`: how long an absent client's subscriptions and queue are kept.
    """

    message_bytes: int = 64 * 1024 * 1024
    queued_messages: int = 100_000
    queued_bytes: int = 512 * 1024 * 1024
    inflight: int = 1000
    autosave_s: int = 60
    connections: int | None = None
    keepalive_s: int | None = None
    session_expiry_s: int | None = None

    @classmethod
    def for_fleet(cls, devices: int, services: int, *, message_bytes: int, update_bytes: int) -> Self:
        """Limits for `devices` and `services` (gateways and observers).

        `message_bytes`: the largest payload; `update_bytes`: what an update has typically. A gateway that is away finds
        four messages of each device at most, an update among them (a device sends the next one after its receipt), or
        as many of them as 4 GiB hold.
        """
        return cls(
            message_bytes=message_bytes,
            queued_messages=max(1000, 4 * devices),
            queued_bytes=min(max(64 * 1024**2, message_bytes, 2 * devices * update_bytes), _MOST_QUEUED_BYTES),
            inflight=1000,
            # A client that comes back before its old connection is found dead takes that one's place, so there is
            # little to add. Mosquitto 2.0 miscounts, docs/broker.md: against strangers the service's LimitNOFILE holds.
            connections=devices + devices // 10 + services + 16,
            keepalive_s=300,
            session_expiry_s=7 * 24 * 3600,
        )

    def listener_lines(self) -> list[str]:
        """As mosquitto.conf has it after the listener."""
        return [] if self.connections is None else [f"max_connections {self.connections}"]

    def lines(self) -> list[str]:
        """The others, as mosquitto.conf has them."""
        lines = [
            # Announced in CONNACK, so that a client can look before it publishes. No message_size_limit: Mosquitto 2.0
            # answers what exceeds that with a reason that MQTT 5 doesn't allow in a PUBACK, and paho drops the
            # connection over it.
            f"max_packet_size {self.message_bytes + PACKET_OVERHEAD}",
            f"max_inflight_messages {self.inflight}",
            f"max_queued_messages {self.queued_messages}",
            f"max_queued_bytes {self.queued_bytes}",
        ]
        if self.keepalive_s is not None:
            lines.append(f"max_keepalive {self.keepalive_s}")
        if self.session_expiry_s is not None:
            # The unit is a letter; hours are the smallest.
            lines.append(f"persistent_client_expiration {max(1, self.session_expiry_s // 3600)}h")
        return lines
