"""What a bundle's graph takes and gives, what is minimised, and how: the manifest inside a model bundle."""

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from pollen.bundle_fields import get, lengths, texts
from pollen.errors import BundleError
from pollen.objective import Loss, Optimizer, loss_from_map, loss_to_map, optimizer_from_map, optimizer_to_map

__all__ = ["MAX_BATCH", "MAX_VALUES", "Loss", "Manifest", "Optimizer", "Shape", "Tensor", "from_map", "get", "to_map"]

MAX_BATCH: Final = 4096
MAX_VALUES: Final = 2**26  # of one array, so that a hostile manifest can't make a device allocate without bound

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

    @property
    def is_variance(self) -> bool:
        """Whether it is a BatchNormalization's moving variance, of which there is no root below 0."""
        return self.name.rpartition("/")[2] == "moving_variance"


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
        self._check_tensors()
        examples = (self.input_shape, self.output_shape, self.label_shape)
        for shape in (*((self.batch, *example) for example in examples), *self.noise):
            if min(shape, default=0) < 1 or math.prod(shape) > MAX_VALUES:
                raise BundleError(f"shape {list(shape)} is empty or holds more than {MAX_VALUES} values")
        if any(len(shape) < 2 or shape[0] != self.batch for shape in self.noise):
            raise BundleError(f"a noise shape must start with the batch, {self.batch}")
        if sum(math.prod(shape) for shape in self.noise) > MAX_VALUES:
            raise BundleError(f"a step's dropout would take more than {MAX_VALUES} random numbers")

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
        "loss": loss_to_map(manifest.loss),
        "optimizer": optimizer_to_map(manifest.optimizer),
        "keras_version": manifest.keras_version,
        "tensorflow_version": manifest.tensorflow_version,
        "architecture": manifest.architecture,
    }


def from_map(fields: dict[str, Any]) -> Manifest:
    """The reverse of `to_map`, for untrusted input: BundleError names the field that is wrong."""
    return Manifest(
        model=get(fields, "model", str),
        weights=_tensors(fields, "weights"),
        state=_tensors(fields, "state"),
        frozen=_tensors(fields, "frozen"),
        personal=texts(fields, "personal"),
        input_shape=lengths(fields, "input_shape"),
        input_dtype=get(fields, "input_dtype", str),
        input_below=get(fields, "input_below", int),
        output_shape=lengths(fields, "output_shape"),
        label_shape=lengths(fields, "label_shape"),
        label_dtype=get(fields, "label_dtype", str),
        batch=get(fields, "batch", int),
        noise=tuple(lengths({"noise": shape}, "noise") for shape in get(fields, "noise", list)),
        loss=loss_from_map(get(fields, "loss", dict)),
        optimizer=optimizer_from_map(get(fields, "optimizer", dict)),
        keras_version=get(fields, "keras_version", str),
        tensorflow_version=get(fields, "tensorflow_version", str),
        architecture=get(fields, "architecture", str),
    )


def _tensors(fields: dict[str, Any], name: str) -> tuple[Tensor, ...]:
    entries = get(fields, name, list)
    if not all(isinstance(entry, dict) for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of names and shapes; compile it again")
    return tuple(Tensor(get(entry, "name", str), lengths(entry, "shape")) for entry in entries)
