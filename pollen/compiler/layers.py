"""Which Keras layers can be compiled: an explicit list; everything else is refused by the layer's name."""

from collections.abc import Callable
from typing import Any, Final

import keras

from pollen.errors import CompileError

ACTIVATIONS: Final = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "tanh",
    "sigmoid",
    "softplus",
    "softsign",
    "silu",
    "softmax",
)
_ALLOWED_ACTIVATIONS: Final = {getattr(keras.activations, name): name for name in ACTIVATIONS}

# For what people try first; any other layer gets the whole list.
_NEAREST: Final = {
    "GRU": "Conv1D",
    "LSTM": "Conv1D",
    "SimpleRNN": "Conv1D",
    "Bidirectional": "Conv1D",
    "Conv2D": "Conv1D",
    "DepthwiseConv1D": "Conv1D",
    "SeparableConv1D": "Conv1D",
    "Conv1DTranspose": "Conv1D",
    "MaxPooling2D": "MaxPooling1D",
    "AveragePooling2D": "AveragePooling1D",
    "GlobalAveragePooling2D": "GlobalAveragePooling1D",
    "GlobalMaxPooling2D": "GlobalMaxPooling1D",
    "SpatialDropout1D": "Dropout",
    "GaussianDropout": "Dropout",
    "GaussianNoise": "Dropout",
    "AlphaDropout": "Dropout",
    "PReLU": "LeakyReLU",
}
_UNTRAINED: Final = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
_CONSTRAINTS: Final = ("kernel_constraint", "bias_constraint")

Problem = str | None


def activation_name(function: Any) -> Problem:
    """The name of one of `ACTIVATIONS`, or None when `function` is none of them."""
    try:
        return _ALLOWED_ACTIVATIONS.get(function)
    except TypeError:
        return None


def _activation(layer: Any) -> Problem:
    if activation_name(layer.activation) is not None:
        return None
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    nearest = "silu" if name in ("gelu", "mish", "hard_silu") else "one of " + ", ".join(ACTIVATIONS)
    return f"its activation {name} has no gradient on the device; use {nearest}"


def _dense(layer: Any) -> Problem:
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "LoRA and quantised layers don't train on the device; use a plain Dense"
    return _activation(layer)


def _convolution(layer: Any) -> Problem:
    if layer.groups != 1:
        return f"groups={layer.groups} has no gradient on the device; use groups=1"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "LoRA and quantised layers don't train on the device; use a plain Conv1D"
    return _activation(layer)


def _dropout(layer: Any) -> Problem:
    if layer.noise_shape is not None:
        return "noise_shape isn't supported; leave it out"
    return "rate=1 drops everything; use a lower rate" if layer.rate >= 1 else None


def _relu(layer: Any) -> Problem:
    if layer.threshold != 0 or layer.max_value not in (None, 6):
        return "threshold, and max_value other than 6, have no gradient on the device; leave them out"
    if layer.max_value is not None and layer.negative_slope != 0:
        return "max_value and negative_slope together have no gradient on the device; use one of them"
    return None


def _softmax(layer: Any) -> Problem:
    return None if layer.axis == -1 else f"axis={layer.axis} isn't supported; use axis=-1"


def _anything(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None


_CHECKS: Final[dict[type, Callable[[Any], Problem]]] = {
    keras.layers.InputLayer: _anything,
    keras.layers.Dense: _dense,
    keras.layers.Conv1D: _convolution,
    keras.layers.MaxPooling1D: _anything,
    keras.layers.AveragePooling1D: _anything,
    keras.layers.GlobalAveragePooling1D: _anything,
    keras.layers.GlobalMaxPooling1D: _anything,
    keras.layers.Flatten: _anything,
    keras.layers.Reshape: _anything,
    keras.layers.Dropout: _dropout,
    keras.layers.Activation: _activation,
    keras.layers.ReLU: _relu,
    keras.layers.LeakyReLU: _anything,
    keras.layers.ELU: _anything,
    keras.layers.Softmax: _softmax,
    keras.layers.Add: _anything,
    keras.layers.Concatenate: _anything,
}


def check(model: Any) -> None:
    """Raise CompileError, naming the layer and the nearest that can be compiled, unless all of `model` can."""
    if not isinstance(model, keras.Model):
        raise CompileError(f"a keras.Model is needed, not {type(model).__name__}")
    if not model.built or not getattr(model, "inputs", None):
        raise CompileError(
            f"model {model.name!r} isn't built or is subclassed; "
            "use a Sequential or functional model that starts with keras.Input(shape)"
        )
    for operation in getattr(model, "operations", model.layers):
        problem = _problem(operation)
        if problem is not None:
            kind = type(operation).__name__
            raise CompileError(f"layer {operation.name!r} ({kind}) can't be compiled: {problem}")
    _check_ends(model)


def _problem(layer: Any) -> Problem:
    specific = _CHECKS.get(type(layer))
    if specific is None:
        names = [allowed.__name__ for allowed in _CHECKS]
        nearest = _NEAREST.get(type(layer).__name__)
        return "this version has no gradient for it; " + (
            f"nearest that can: {nearest}" if nearest else "what can: " + ", ".join(names)
        )
    if not layer.trainable or any(not variable.trainable for variable in layer.variables if _is_float(variable)):
        return "trainable=False isn't supported yet; train it, or leave the layer out"
    if layer.dtype_policy.name != "float32":
        return f"its dtype policy is {layer.dtype_policy.name}; use float32"
    for name in _UNTRAINED:
        if getattr(layer, name, None) is not None:
            return f"{name} isn't part of the device's loss; leave it out"
    for name in _CONSTRAINTS:
        if getattr(layer, name, None) is not None:
            return f"{name} isn't applied on the device; leave it out"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "data_format channels_first isn't supported; use channels_last"
    return specific(layer)


def _is_float(variable: Any) -> bool:
    return "float" in str(variable.dtype)


def _check_ends(model: Any) -> None:
    """One float32 input and one output of known shapes, and something to train."""
    for word, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            raise CompileError(f"model {model.name!r} has {len(tensors)} {word}s; one is supported")
        shape = tensors[0].shape[1:]
        if not shape or None in shape:
            raise CompileError(
                f"model {model.name!r}: its {word} has the shape {tuple(tensors[0].shape)}; "
                "all lengths but the batch must be fixed"
            )
        if tensors[0].dtype != "float32":
            raise CompileError(
                f"model {model.name!r}: its {word} is {tensors[0].dtype}; use float32 (one-hot for categories)"
            )
    if not model.trainable_variables:
        raise CompileError(f"model {model.name!r} has no trainable weights; add a Dense or Conv1D layer")
