"""The messages between devices and the server, as dataclasses, and their CBOR form.

Every payload is a map with `"v": 1`; unknown keys are ignored, an unknown `v` is refused. A decoder checks the
type and range of every field it uses, so what it returns can be trusted in form, never in content.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pollen import cbor
from pollen.errors import MessageError
from pollen.fields import Fields
from pollen.signing import SIGNATURE_BYTES

VERSION: Final = 1
SMALL_BYTES: Final = 64 * 1024  # limit for every message that carries no tensors
TASK_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32

TaskKind = Literal["train", "evaluate", "query"]
Outcome = Literal["merged", "accepted", "duplicate", "rejected"]
GraphKind = Literal["float32", "dynamic", "int8"]
GRAPH_KINDS: Final[tuple[GraphKind, ...]] = ("float32", "dynamic", "int8")
Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Session:
    """One connection of a device: `boot` (8 random bytes a process start) and the connection's number in it.

    A birth and its will carry the same session, so that a late will can't mark a reconnected device dead
    (Sparkplug's bdSeq).
    """

    boot: bytes
    connection: int


@dataclass(frozen=True, slots=True)
class Birth:
    """A device came online, and what it is. `ram_bytes` is the machine's memory, `models` what it can train, `clock`
    "synchronised", "unsynchronised" (then it accepts certificates outside their dates), or "" where it can't know."""

    session: Session
    software: str = ""
    python: str = ""
    interpreter: str = ""
    machine: str = ""
    cores: int = 0
    ram_bytes: int = 0
    sensors: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    clock: str = ""


@dataclass(frozen=True, slots=True)
class Death:
    """A device went offline; as its last will, or on a clean stop with another reason than "lost"."""

    session: Session
    reason: str


@dataclass(frozen=True, slots=True)
class Task:
    """What a device shall do. `version`: the newest model version when it was sent; `bundle`: the compiled model's
    SHA-256; `config`: hyperparameters by name; `ttl_s`: seconds until the server sends it again."""

    task: bytes
    kind: TaskKind
    model: str
    version: int
    bundle: bytes
    config: Mapping[str, Scalar] = field(default_factory=dict)
    ttl_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Update:
    """The reply to a train task: `delta` (named wire tensors, `pollen.encoding`) against version `base`, from
    `samples` samples in `steps` optimizer steps. `seq` grows with every update a device makes.

    `against`: None for a plain delta. Where the task asked for a residual, `delta` is the trained model minus the
    device's contribution to the task `against`, b"" being the bundle's weights; `base` is what was trained from."""

    task: bytes
    seq: int
    base: int
    samples: int
    steps: int
    delta: Any
    metrics: Mapping[str, float] = field(default_factory=dict)
    against: bytes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The reply to an evaluate or query task, or with `error` to any task the device could not do."""

    task: bytes
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a task's reply, as of the first delivery; a redelivery gets the same receipt.

    Outcome: merged (an update), accepted (a result), duplicate (the task was answered by another update, `seq`),
    rejected (see `reason`). `version` is the model's afterwards, `weight` the factor on the delta, `staleness` in
    merges.
    """

    task: bytes
    seq: int
    outcome: Outcome
    version: int
    weight: float = 0.0
    staleness: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Vitals:
    """Measurements of a device by name, at most 64; units are in the names (rss_bytes, temperature_celsius, …)."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Head:
    """Which snapshot of a model is the newest: `digest` is the snapshot's, `bundle` the compiled model's,
    `size_bytes` of the snapshot's payload, `published_at` in seconds since 1970 by the server's clock."""

    model: str
    version: int
    digest: bytes
    bundle: bytes
    size_bytes: int
    published_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The weights of one version, as named wire tensors; `digest` is SHA-256 of the flat float32 vector; `signature`
    as in `pollen.signing`, None for none."""

    model: str
    version: int
    digest: bytes
    weights: Any
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """A graph of one version that only predicts, made by the server: `graph` a .tflite file with the signature
    `infer(x[1, …]) -> y`, `digest` its SHA-256, `bundle` the compiled model's. `metrics`: what was lost on the server's
    data, see `pollen.compiler.inference.Conversion`. `signature` as in `pollen.signing`, None for none."""

    model: str
    version: int
    kind: GraphKind
    bundle: bytes
    digest: bytes
    graph: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)
    signature: bytes | None = None


Message = Birth | Death | Task | Update | Result | Receipt | Vitals | Head | Snapshot | Inference


def encode(message: Message) -> bytes:
    """The CBOR payload of `message`."""
    return cbor.encode({"v": VERSION, **_to_map(message)})


def _to_map(message: Message) -> dict[str, Any]:
    match message:
        case Birth(session=session):
            known = {name: getattr(message, name) for name in Birth.__slots__ if name != "session"}
            return {"online": True, "boot": session.boot, "conn": session.connection, **known}
        case Death(session=session, reason=reason):
            return {"online": False, "boot": session.boot, "conn": session.connection, "reason": reason}
        case _:
            values = ((name, getattr(message, name)) for name in type(message).__slots__)
            return {_KEYS.get(name, name): value for name, value in values if value is not None}


# Shorter on the wire, spelled out in the code.
_KEYS: Final = {"samples": "n", "signature": "sig"}


def decode_state(payload: bytes) -> Birth | Death:
    """Decode `d/<device>/state`. Raises MessageError."""
    f = _open(payload, SMALL_BYTES, "state")
    session = Session(f.bytes("boot", 8), f.whole("conn"))
    if not f.boolean("online"):
        return Death(session, f.text("reason", ""))
    return Birth(
        session,
        software=f.text("software", ""),
        python=f.text("python", ""),
        interpreter=f.text("interpreter", ""),
        machine=f.text("machine", ""),
        cores=f.whole("cores", 0),
        ram_bytes=f.whole("ram_bytes", 0),
        sensors=f.texts("sensors"),
        models=f.texts("models"),
        clock=f.text("clock", ""),
    )


def decode_task(payload: bytes) -> Task:
    """Decode `d/<device>/task`. Raises MessageError."""
    f = _open(payload, SMALL_BYTES, "task")
    return Task(
        task=f.bytes("task", TASK_ID_BYTES),
        kind=f.choice("kind", ("train", "evaluate", "query")),
        model=f.text("model"),
        version=f.whole("version"),
        bundle=f.bytes("bundle", DIGEST_BYTES),
        config=f.scalars("config"),
        ttl_s=f.real("ttl_s", minimum=0.0),
    )


def decode_update(payload: bytes, limit_bytes: int) -> Update:
    """Decode `d/<device>/update`; its delta is not yet checked against a model. Raises MessageError."""
    f = _open(payload, limit_bytes, "update")
    return Update(
        task=f.bytes("task", TASK_ID_BYTES),
        seq=f.whole("seq"),
        base=f.whole("base"),
        samples=f.whole("n"),
        steps=f.whole("steps"),
        delta=f.any("delta"),
        metrics=f.reals("metrics"),
        against=f.bytes_or_none("against", 0, TASK_ID_BYTES),
    )


def decode_result(payload: bytes) -> Result:
    """Decode `d/<device>/result`. Raises MessageError."""
    f = _open(payload, SMALL_BYTES, "result")
    return Result(f.bytes("task", TASK_ID_BYTES), f.whole("n"), f.reals("metrics"), f.text("error", ""))


def decode_receipt(payload: bytes) -> Receipt:
    """Decode `d/<device>/receipt`. Raises MessageError."""
    f = _open(payload, SMALL_BYTES, "receipt")
    return Receipt(
        task=f.bytes("task", TASK_ID_BYTES),
        seq=f.whole("seq"),
        outcome=f.choice("outcome", ("merged", "accepted", "duplicate", "rejected")),
        version=f.whole("version"),
        weight=f.real("weight"),
        staleness=f.whole("staleness"),
        reason=f.text("reason", ""),
    )


def decode_vitals(payload: bytes) -> Vitals:
    """Decode `d/<device>/vitals`. Raises MessageError."""
    return Vitals(_open(payload, SMALL_BYTES, "vitals").reals("values"))


def decode_head(payload: bytes) -> Head:
    """Decode `m/<model>/head`. Raises MessageError."""
    f = _open(payload, SMALL_BYTES, "head")
    return Head(
        model=f.text("model"),
        version=f.whole("version"),
        digest=f.bytes("digest", DIGEST_BYTES),
        bundle=f.bytes("bundle", DIGEST_BYTES),
        size_bytes=f.whole("size_bytes"),
        published_at=f.real("published_at"),
    )


def decode_snapshot(payload: bytes, limit_bytes: int) -> Snapshot:
    """Decode `m/<model>/weights`; its tensors are not yet checked against a model. Raises MessageError."""
    f = _open(payload, limit_bytes, "weights")
    return Snapshot(
        model=f.text("model"),
        version=f.whole("version"),
        digest=f.bytes("digest", DIGEST_BYTES),
        weights=f.any("weights"),
        signature=f.bytes_or_none("sig", SIGNATURE_BYTES),
    )


def decode_inference(payload: bytes, limit_bytes: int) -> Inference:
    """Decode `m/<model>/infer`; its graph is not yet compared with a model. Raises MessageError."""
    f = _open(payload, limit_bytes, "infer")
    message = Inference(
        model=f.text("model"),
        version=f.whole("version"),
        kind=f.choice("kind", GRAPH_KINDS),
        bundle=f.bytes("bundle", DIGEST_BYTES),
        digest=f.bytes("digest", DIGEST_BYTES),
        graph=f.any("graph"),
        metrics=f.reals("metrics"),
        signature=f.bytes_or_none("sig", SIGNATURE_BYTES),
    )
    if not isinstance(message.graph, bytes) or hashlib.sha256(message.graph).digest() != message.digest:
        raise MessageError(f"infer: the graph of version {message.version} doesn't match its digest")
    return message


def _open(payload: bytes, limit_bytes: int, kind: str) -> Fields:
    value = cbor.decode(payload, limit_bytes)
    if not isinstance(value, dict):
        raise MessageError(f"{kind}: a message must be a map")
    version = value.get("v")
    if type(version) is not int or version != VERSION:
        shown = version if type(version) is int else f"of type {type(version).__name__}"
        raise MessageError(f"{kind}: message version {shown} is not known here; this software speaks {VERSION}")
    return Fields(value, kind)


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` without what has no place on the wire: numbers that are not finite."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
