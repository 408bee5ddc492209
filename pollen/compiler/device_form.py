"""The copy of a model that is traced for the device: dropout from outside, activations that convert well."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import keras
import tensorflow as tf

from pollen.bundle import Shape
from pollen.errors import CompileError

_STEEP = 1e30


@tf.custom_gradient
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), for any x: converted as it stands, Keras's overflows above 88 on the device."""

    def gradient(dy: Any) -> Any:
        return dy * tf.sigmoid(x)

    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x))), gradient


DEVICE_ACTIVATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {keras.activations.softplus: softplus}


class Uniform:
    """Where a layer finds its uniform numbers while the graph is traced."""

    def __init__(self) -> None:
        self.values: Any = None


class HostNoiseDropout(keras.layers.Layer):
    """Keras's Dropout with the uniform numbers [B, …] in [0, 1) given from outside: dropped where u < rate."""

    def __init__(self, rate: float, name: str) -> None:
        super().__init__(name=name)
        self.rate = rate
        self.uniform = Uniform()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`inputs` with dropped elements zero and the others divided by 1 - rate; unchanged at inference."""
        if not training:
            return inputs
        # 1 where u >= rate, by clipping: comparisons and selects are slow on tflite-runtime.
        kept = 1.0 - tf.clip_by_value((self.rate - self.uniform.values) * _STEEP, 0.0, 1.0)
        return inputs * (kept * (1.0 / (1.0 - self.rate)))


def copy(
    model: Any, activations: Mapping[Callable[..., Any], Callable[..., Any]], frozen: Collection[str] = ()
) -> tuple[Any, list[HostNoiseDropout]]:
    """A copy of `model`, weights included, and its Dropout layers, which take their numbers from outside.

    In the copy each activation function that is a key of `activations` is replaced by its value, and the layers named
    in `frozen` are not trained, beside those that aren't in `model`. Raises CompileError when a Dropout layer is used
    twice, since each use needs numbers of its own.
    """
    _check_dropout_used_once(model)
    replaced: list[HostNoiseDropout] = []

    def copy_layer(layer: Any) -> Any:
        if type(layer) is keras.layers.Dropout and layer.rate > 0:
            replaced.append(HostNoiseDropout(layer.rate, layer.name))
            return replaced[-1]
        copied = type(layer).from_config(layer.get_config())
        if hasattr(copied, "activation"):
            copied.activation = activations.get(copied.activation, copied.activation)
        return copied

    clone = keras.models.clone_model(model, clone_function=copy_layer)
    for source, target in zip(_floats(model), _floats(clone), strict=True):
        target.assign(source)
    for source, target in zip(model.layers, clone.layers, strict=True):
        # Keras's clone trains some layers that the original doesn't.
        if not source.trainable or source.name in frozen:
            target.trainable = False
    return clone, replaced


def _floats(model: Any) -> list[Any]:
    """The variables but for the seeds of random generators, which a copy may have fewer of."""
    return [variable for variable in model.variables if "float" in str(variable.dtype)]


def noise_shapes(layers: list[HostNoiseDropout], batch: int) -> tuple[Shape, ...]:
    """The shape of each layer's uniform numbers, the batch axis included."""
    return tuple((batch, *layer.input.shape[1:]) for layer in layers)


def _check_dropout_used_once(model: Any) -> None:
    for entry in model.get_config()["layers"]:
        if entry["class_name"] == "Dropout" and len(entry.get("inbound_nodes", ())) > 1:
            raise CompileError(
                f"layer {entry['config']['name']!r} (Dropout) can't be compiled: it is used more than once; "
                "use a Dropout of its own at each place"
            )
