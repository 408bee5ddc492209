"""What a message says, for people and for programs: the decoding behind `pollen tail`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from pollen import messages
from pollen.errors import BundleError, MessageError
from pollen.messages import Birth, Death, Head, Inference, Receipt, Result, Snapshot, Task, Update, Vitals

MOST_BYTES: Final = 64 * 1024 * 1024  # what is larger is told by its size only
_SHOWN_VITALS: Final = 8

_DECODERS: Final[dict[str, Callable[[bytes], messages.Message]]] = {
    "state": messages.decode_state,
    "update": lambda payload: messages.decode_update(payload, MOST_BYTES),
    "result": messages.decode_result,
    "vitals": messages.decode_vitals,
    "task": messages.decode_task,
    "receipt": messages.decode_receipt,
    "head": messages.decode_head,
    "weights": lambda payload: messages.decode_snapshot(payload, MOST_BYTES),
    "infer": lambda payload: messages.decode_inference(payload, MOST_BYTES),
}
LEAVES: Final = (*_DECODERS, "bundle")


@dataclass(frozen=True, slots=True)
class Shown:
    """One message: whose it is (a device or a model), its leaf, its size, and what it says or why it can't be read."""

    owner: str
    leaf: str
    size_bytes: int
    message: messages.Message | None = None
    error: str = ""

    @property
    def text(self) -> str:
        """What it says, in one line."""
        if self.error:
            return f"not readable: {self.error} ({size(self.size_bytes)})"
        if self.message is None:
            return size(self.size_bytes) if self.size_bytes else "removed"
        return _said(self.message, self.size_bytes)

    @property
    def values(self) -> dict[str, Any]:
        """What it says, as JSON's values: bytes in hexadecimal, of tensors only type and shape."""
        told: dict[str, Any] = {"name": self.owner, "leaf": self.leaf, "size_bytes": self.size_bytes}
        if self.error:
            told["error"] = self.error
        if self.message is not None:
            told["message"] = {"type": type(self.message).__name__.lower(), **_plain(self.message)}
        return told


def read(owner: str, leaf: str, payload: bytes) -> Shown:
    """Decode a payload of any origin; never raises for what it holds."""
    decode = _DECODERS.get(leaf)
    if decode is None or not payload:
        return Shown(owner, leaf, len(payload))
    try:
        return Shown(owner, leaf, len(payload), decode(payload))
    except (MessageError, BundleError) as error:
        return Shown(owner, leaf, len(payload), error=str(error))


def size(count_bytes: int) -> str:
    """`count_bytes` for people."""
    for unit in ("B", "kB", "MB"):
        if count_bytes < 1000 or unit == "MB":
            break
        count_bytes /= 1000  # type: ignore[assignment]
    return f"{count_bytes:.3g} {unit}"


def _said(message: messages.Message, size_bytes: int) -> str:
    match message:
        case Birth():
            machine = f"{message.machine}, {message.cores} cores, Python {message.python}, {message.interpreter}"
            return f"online: pollen {message.software} on {machine}; trains {', '.join(message.models) or 'nothing'}"
        case Death():
            return f"offline: {message.reason}"
        case Task():
            config = " ".join(f"{name}={value}" for name, value in message.config.items())
            return (
                f"{message.kind} {message.model} from version {message.version}, task {_short(message.task)} {config}"
            )
        case Update():
            loss = " to ".join(
                f"{message.metrics[n]:.4g}" for n in ("loss_before", "loss_after") if n in message.metrics
            )
            told = f"task {_short(message.task)}, number {message.seq}, base {message.base}, {message.samples} samples"
            return f"{told}, {message.steps} steps, {size(size_bytes)}" + (f", loss {loss}" if loss else "")
        case Result():
            metrics = message.error or _numbers(message.metrics)
            return f"task {_short(message.task)}, {message.samples} samples, {metrics}"
        case Receipt():
            told = f"{message.outcome}: task {_short(message.task)}, number {message.seq}, version {message.version}"
            if message.outcome == "merged":
                told += f", weight {message.weight:.3g}, staleness {message.staleness}"
            return told + (f"; {message.reason}" if message.reason else "")
        case Vitals():
            return _numbers(message.values)
        case Head():
            return f"version {message.version}, snapshot of {size(message.size_bytes)}"
        case Snapshot():
            return f"version {message.version}, {size(size_bytes)}"
        case Inference():
            return f"version {message.version}, {message.kind} graph of {size(len(message.graph))}"


def _numbers(values: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN_VITALS]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _short(task: bytes) -> str:
    return task.hex()[:8]


def _plain(value: Any) -> Any:
    """`value` with nothing in it that JSON has no form for."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex() if len(value) <= messages.DIGEST_BYTES else size(len(value))
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return value if isinstance(value, str | int | float | bool | None) else str(type(value).__name__)
