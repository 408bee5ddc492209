"""An MQTT 5 client on asyncio with what a simulated device needs and nothing else: 1,000 of them fit into a process.

Numbers are those of OASIS MQTT Version 5.0: packet types of section 2.1.2, properties of 2.2.2.2, reasons of 2.4.
paho's own would do, but it shakes hands for TLS in a blocking call, so that no storm of connections ever comes.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol, cast

KEEPALIVE_S: Final = 60
SESSION_EXPIRY_S: Final = 3600
NO_MATCHING_SUBSCRIBERS: Final = 0x10
CONNECT, CONNACK, PUBLISH, PUBACK, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x90
SUBSCRIBE, UNSUBSCRIBE, PINGREQ = 0x82, 0xA2, 0xC0


class Owner(Protocol):
    """What a connection tells: reasons are MQTT's, below 0x80 for success."""

    def connected(self, connection: "Connection", reason: int) -> None:
        """CONNACK came."""

    def subscribed(self, connection: "Connection") -> None:
        """SUBACK came."""

    def received(self, connection: "Connection", topic: str, payload: bytes) -> None:
        """A message came."""

    def acknowledged(self, connection: "Connection", packet: int, reason: int) -> None:
        """PUBACK came."""

    def lost(self, connection: "Connection") -> None:
        """The connection is gone, whoever ended it."""


class Connection(asyncio.Protocol):
    """One connection with clean start false; without `password` the broker takes the name from the certificate."""

    def __init__(self, owner: Owner, name: str, password: str = "") -> None:
        self._owner, self._name, self._password = owner, name, password
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._packet = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP, and TLS where there is any, are up: say CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        flags, credentials = 0, b""
        if self._password:
            flags, credentials = 0xC0, _text(self._name) + _text(self._password)
        properties = b"\x11" + SESSION_EXPIRY_S.to_bytes(4, "big")
        variable = _text("MQTT") + bytes([5, flags]) + KEEPALIVE_S.to_bytes(2, "big") + _sized(properties)
        self._write(CONNECT, variable + _text(self._name) + credentials)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The other side, or `abort`, ended it."""
        self._transport = None
        self._owner.lost(self)

    def data_received(self, data: bytes) -> None:
        """Take apart whatever packets are complete."""
        self._received += data
        while (found := _packet(self._received)) is not None:
            start, end = found
            first, body = self._received[0], bytes(self._received[start:end])
            del self._received[:end]
            self._handle(first, body)

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1."""
        self._write(SUBSCRIBE, self._next() + b"\0" + b"".join(_text(one) + b"\1" for one in filters))

    def unsubscribe(self, one: str) -> None:
        """Leave a subscription."""
        self._write(UNSUBSCRIBE, self._next() + b"\0" + _text(one))

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Publish; returns the packet's number, which `acknowledged` repeats (QoS 1 only)."""
        head = _text(topic) + (self._next() if qos else b"") + b"\0"
        self._write(PUBLISH | qos << 1 | retain, head, payload)
        return self._packet

    def ping(self) -> None:
        """Keep the connection alive."""
        self._write(PINGREQ, b"")

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the network has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close the socket without a word."""
        if self._transport is not None:
            self._transport.abort()

    def fall_silent(self) -> None:
        """As after a power cut: the broker is told nothing, and what it sends is not read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def _handle(self, first: int, body: bytes) -> None:
        match first & 0xF0:
            case 0x20:
                self._owner.connected(self, body[1])
            case 0x90:
                self._owner.subscribed(self)
            case 0x40:
                self._owner.acknowledged(self, int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0)
            case 0x30:
                self._take(first, body)

    def _take(self, first: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, qos = body[2:end].decode(), first >> 1 & 3
        if qos:
            self._write(PUBACK, body[end : end + 2])
            end += 2
        properties, length = _varint(body, end)
        self._owner.received(self, topic, body[end + length + properties :])

    def _next(self) -> bytes:
        self._packet = self._packet % 0xFFFF + 1
        return self._packet.to_bytes(2, "big")

    def _write(self, first: int, head: bytes, payload: bytes = b"") -> None:
        if self._transport is not None:
            packet = bytes([first]) + _length(len(head) + len(payload)) + head
            self._transport.write(packet + payload)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _sized(properties: bytes) -> bytes:
    return _length(len(properties)) + properties


def _length(number: int) -> bytes:
    """A variable byte integer (section 1.5.5)."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The variable byte integer at `at`, and its length. Raises IndexError when it is not all there."""
    number = length = 0
    while True:
        byte = data[at + length]
        number |= (byte & 0x7F) << 7 * length
        length += 1
        if byte < 0x80:
            return number, length


def _packet(data: bytearray) -> tuple[int, int] | None:
    """Where the first packet's body starts and ends; None when it is not complete."""
    try:
        size, length = _varint(data, 1)
    except IndexError:
        return None
    start = 1 + length
    return (start, start + size) if len(data) >= start + size else None
