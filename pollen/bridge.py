"""The stream between a gateway and the server: frames, and how a batch of them travels in one gRPC message.

The gateway dials the server and opens one bidirectional stream of the method `METHOD`. A gRPC message is a CBOR
list of frames, each `[kind, field, …]`: whatever is waiting goes together, since a message costs far more than a
frame. Device payloads pass through as they came from the broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pollen import cbor
from pollen.errors import MessageError

METHOD: Final = "/pollen.v1.Bridge/Connect"
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
BATCH_BYTES: Final = 1024 * 1024
BATCH_FRAMES: Final = 1000  # keeps a message well below the decoder's bound on items
PROTOCOL: Final = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a gateway: its name, its fleet, its software version, the protocol it speaks."""

    gateway: str
    fleet: str
    software: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device's birth or death, as published on its state topic."""

    device: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """A device's update or result. `delivery` numbers it within this stream, for `Accepted`."""

    delivery: int
    device: str
    leaf: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class DeviceVitals:
    """A device's vitals, as published."""

    device: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server has committed or refused these deliveries: the broker may forget them."""

    deliveries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToDevice:
    """Publish on a device's task or receipt topic; `expiry_s` 0 means no message expiry."""

    device: str
    leaf: str
    payload: bytes
    expiry_s: int = 0


@dataclass(frozen=True, slots=True)
class ModelMessage:
    """Publish, retained, on a model's head, weights, bundle or infer topic."""

    model: str
    leaf: str
    payload: bytes


Frame = Hello | DeviceState | Upload | DeviceVitals | Accepted | ToDevice | ModelMessage

_KINDS: Final[dict[str, type[Any]]] = {
    "hello": Hello,
    "state": DeviceState,
    "upload": Upload,
    "vitals": DeviceVitals,
    "accepted": Accepted,
    "device": ToDevice,
    "model": ModelMessage,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def encode(frames: Iterable[Frame]) -> bytes:
    """One gRPC message that holds `frames`, in order."""
    return cbor.encode([[_NAMES[type(frame)], *_fields(frame)] for frame in frames])


def _fields(frame: Frame) -> list[Any]:
    return [getattr(frame, name) for name in type(frame).__annotations__]  # astuple would cost as much as all the rest


def decode(message: bytes) -> list[Frame]:
    """The frames of one gRPC message. Raises MessageError when it is not what a peer of this protocol sends."""
    value = cbor.decode(message, MAX_MESSAGE_BYTES)
    if not isinstance(value, list):
        raise MessageError("bridge: a message must be a list of frames")
    return [_decode_frame(item) for item in value]


def _decode_frame(item: Any) -> Frame:
    if not isinstance(item, list) or not item or not isinstance(item[0], str) or item[0] not in _KINDS:
        raise MessageError("bridge: a frame of an unknown kind; gateway and server must be of the same release")
    kind = _KINDS[item[0]]
    annotations = kind.__annotations__
    if len(item) - 1 != len(annotations):
        raise MessageError(f"bridge: a {item[0]} frame has {len(item) - 1} fields, expected {len(annotations)}")
    fields = [tuple(value) if isinstance(value, list) else value for value in item[1:]]
    for value, (name, expected) in zip(fields, annotations.items(), strict=True):
        if expected == tuple[int, ...]:
            correct = isinstance(value, tuple) and all(type(entry) is int for entry in value)
        else:
            correct = type(value) is expected
        if not correct:
            raise MessageError(f"bridge: field {name!r} of a {item[0]} frame has the wrong type")
    frame: Frame = kind(*fields)
    return frame


def frame_bytes(frame: Frame) -> int:
    """About how many bytes `frame` takes."""
    return 64 + len(getattr(frame, "payload", b"")) + 64 * len(getattr(frame, "deliveries", ()))
