"""What a bundle's graph takes and gives, what is minimised, and how: the manifest inside a model bundle."""

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from pollen.errors import BundleError

MAX_BATCH: Final = 4096
MAX_VALUES: Final = 2**26  # of one array, so that a hostile manifest can't make a device allocate without bound

LOSSES: Final = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy", "mse")
OPTIMIZER_SETTINGS: Final[dict[str, frozenset[str]]] = {
    "sgd": frozenset(),
    "momentum": frozenset({"momentum", "nesterov"}),
    "adam": frozenset({"beta_1", "beta_2", "epsilon"}),
}
_MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DTYPES: Final = ("float32", "int32")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor of a model; its values stand in a flat vector, row-major, in the manifest's order."""

    name: str
    shape: Shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def layer(self) -> str:
        """The Keras layer it belongs to: what stands before the first slash of its name."""
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised: one of `LOSSES`, a mean over the batch weighted by sample_weight."""

    name: str
    from_logits: bool


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The device's optimizer: "sgd", "momentum" or "adam", with the constants `OPTIMIZER_SETTINGS` lists.

    `nesterov` is 0.0 or 1.0; all values are what the Keras optimizer of the same name takes.
    """

    name: str
    learning_rate: float
    settings: dict[str, float]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle's graph takes and gives; shapes of single examples, without the batch axis.

    `weights` are the tensors that are trained, in Keras's order; `state` those that training moves without a gradient,
    BatchNormalization's moving averages; `frozen` those that stay as they are, constants of the graph. `personal` names
    the layers whose weights and state stay on the device; all others are `shared`.
    `noise`: the shapes (with the batch axis) of the uniform numbers in [0, 1) that dropout takes, u0, u1, ….
    `input_below`: an int32 input's values are 0 to input_below - 1; 0 for float32.
    `architecture`: the Keras model without its weights, as JSON, so that they can be written back into one.
    Raises BundleError when a value is out of range.
    """

    model: str
    weights: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    frozen: tuple[Tensor, ...]
    personal: tuple[str, ...]
    input_shape: Shape
    input_dtype: str
    input_below: int
    output_shape: Shape
    label_shape: Shape
    label_dtype: str
    batch: int
    noise: tuple[Shape, ...]
    loss: Loss
    optimizer: Optimizer
    keras_version: str
    tensorflow_version: str
    architecture: str

    def __post_init__(self) -> None:
        if _MODEL_NAME.fullmatch(self.model) is None:
            raise BundleError(f"model name {self.model!r} must be 1 to 64 of a-z 0-9 _ -, starting with a-z or 0-9")
        if self.input_dtype not in _DTYPES or self.label_dtype not in _DTYPES:
            raise BundleError(
                f"input and label dtypes must be float32 or int32, not {self.input_dtype}, {self.label_dtype}"
            )
        if (self.input_dtype == "int32") != (0 < self.input_below <= MAX_VALUES):
            raise BundleError(f"input_below is {self.input_below} for an input of {self.input_dtype}")
        if not 1 <= self.batch <= MAX_BATCH:
            raise BundleError(f"batch must be 1 to {MAX_BATCH}, not {self.batch}")
        if self.loss.name not in LOSSES:
            raise BundleError(f"loss {self.loss.name!r} is not known; known: {', '.join(LOSSES)}")
        _check_optimizer(self.optimizer)
        self._check_tensors()
        examples = (self.input_shape, self.output_shape, self.label_shape)
        for shape in (*((self.batch, *example) for example in examples), *self.noise):
            if min(shape, default=0) < 1 or math.prod(shape) > MAX_VALUES:
                raise BundleError(f"shape {list(shape)} is empty or holds more than {MAX_VALUES} values")
        if any(len(shape) < 2 or shape[0] != self.batch for shape in self.noise):
            raise BundleError(f"a noise shape must start with the batch, {self.batch}")

    def _check_tensors(self) -> None:
        tensors = self.weights + self.state
        names = [tensor.name for tensor in tensors + self.frozen]
        if len(set(names)) != len(names):
            raise BundleError("tensor names must be unique")
        if not self.weights:
            raise BundleError("a model needs at least one trainable weight")
        layers = {tensor.layer for tensor in tensors}
        for layer in self.personal:
            if layer not in layers:
                raise BundleError(f"personal layer {layer!r} has nothing that is trained; one of {sorted(layers)} does")
        if all(tensor.layer in self.personal for tensor in self.weights):
            raise BundleError("all layers are personal, so there is nothing to share; leave one out")

    @property
    def parameters(self) -> int:
        """P, the number of trainable weights, personal ones included."""
        return sum(tensor.size for tensor in self.weights)

    @property
    def state_size(self) -> int:
        """S, the number of state values, personal ones included."""
        return sum(tensor.size for tensor in self.state)

    @property
    def frozen_size(self) -> int:
        """C, the number of values that stay as they are."""
        return sum(tensor.size for tensor in self.frozen)

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """The tensors that devices send and the server merges: weights, then state, without the personal layers."""
        return tuple(tensor for tensor in self.weights + self.state if tensor.layer not in self.personal)

    @property
    def shared_size(self) -> int:
        """F, the number of values that devices send and the server merges."""
        return sum(tensor.size for tensor in self.shared)


def _check_optimizer(optimizer: Optimizer) -> None:
    expected = OPTIMIZER_SETTINGS.get(optimizer.name)
    if expected is None:
        raise BundleError(f"optimizer {optimizer.name!r} is not known; known: {', '.join(OPTIMIZER_SETTINGS)}")
    if set(optimizer.settings) != expected:
        raise BundleError(f"optimizer {optimizer.name} takes {sorted(expected)}, not {sorted(optimizer.settings)}")
    values = optimizer.settings
    rates = [values[name] for name in ("momentum", "beta_1", "beta_2") if name in values]
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        raise BundleError(f"learning rate must be above 0, not {optimizer.learning_rate}")
    if not all(0 <= rate < 1 for rate in rates) or not 0 < values.get("epsilon", 1.0) <= 1:
        raise BundleError(f"optimizer {optimizer.name}: a setting is out of range: {values}")


def to_map(manifest: Manifest) -> dict[str, Any]:
    """The manifest as the CBOR map inside a bundle."""
    return {
        "model": manifest.model,
        "weights": [{"name": tensor.name, "shape": tensor.shape} for tensor in manifest.weights],
        "state": [{"name": tensor.name, "shape": tensor.shape} for tensor in manifest.state],
        "frozen": [{"name": tensor.name, "shape": tensor.shape} for tensor in manifest.frozen],
        "personal": manifest.personal,
        "input_shape": manifest.input_shape,
        "input_dtype": manifest.input_dtype,
        "input_below": manifest.input_below,
        "output_shape": manifest.output_shape,
        "label_shape": manifest.label_shape,
        "label_dtype": manifest.label_dtype,
        "batch": manifest.batch,
        "noise": manifest.noise,
        "loss": {"name": manifest.loss.name, "from_logits": manifest.loss.from_logits},
        "optimizer": {
            "name": manifest.optimizer.name,
            "learning_rate": manifest.optimizer.learning_rate,
            "settings": manifest.optimizer.settings,
        },
        "keras_version": manifest.keras_version,
        "tensorflow_version": manifest.tensorflow_version,
        "architecture": manifest.architecture,
    }


def from_map(fields: dict[str, Any]) -> Manifest:
    """The reverse of `to_map`, for untrusted input: BundleError names the field that is wrong."""
    loss = get(fields, "loss", dict)
    optimizer = get(fields, "optimizer", dict)
    settings = get(optimizer, "settings", dict)
    return Manifest(
        model=get(fields, "model", str),
        weights=_tensors(fields, "weights"),
        state=_tensors(fields, "state"),
        frozen=_tensors(fields, "frozen"),
        personal=_names(fields, "personal"),
        input_shape=_shape(fields, "input_shape"),
        input_dtype=get(fields, "input_dtype", str),
        input_below=get(fields, "input_below", int),
        output_shape=_shape(fields, "output_shape"),
        label_shape=_shape(fields, "label_shape"),
        label_dtype=get(fields, "label_dtype", str),
        batch=get(fields, "batch", int),
        noise=tuple(_shape({"noise": shape}, "noise") for shape in get(fields, "noise", list)),
        loss=Loss(get(loss, "name", str), get(loss, "from_logits", bool)),
        optimizer=Optimizer(
            get(optimizer, "name", str),
            get(optimizer, "learning_rate", float),
            {name: get(settings, name, float) for name in settings},
        ),
        keras_version=get(fields, "keras_version", str),
        tensorflow_version=get(fields, "tensorflow_version", str),
        architecture=get(fields, "architecture", str),
    )


def get(fields: dict[str, Any], name: str, kind: type) -> Any:
    """The value of a field that must be exactly of type `kind`, else BundleError."""
    value = fields.get(name)
    if type(value) is not kind:
        raise BundleError(f"field {name!r} must be {kind.__name__}; compile it again")
    return value


def _shape(fields: dict[str, Any], name: str) -> Shape:
    shape = get(fields, name, list)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise BundleError(f"manifest field {name!r} must be a list of lengths; compile it again")
    return tuple(shape)


def _names(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    entries = get(fields, name, list)
    if not all(type(entry) is str for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of names; compile it again")
    return tuple(entries)


def _tensors(fields: dict[str, Any], name: str) -> tuple[Tensor, ...]:
    entries = get(fields, name, list)
    if not all(isinstance(entry, dict) for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of names and shapes; compile it again")
    return tuple(Tensor(get(entry, "name", str), _shape(entry, "shape")) for entry in entries)
