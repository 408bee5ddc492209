"""The check of a whole model, layer by layer, before anything is traced."""

from typing import Any, Final

import keras

from pollen.compiler.layers.registry import Problem, check_of, names
from pollen.errors import CompileError

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
    specific = check_of(layer)
    if specific is None:
        nearest = _NEAREST.get(type(layer).__name__)
        return "this version has no gradient for it; " + (
            f"nearest that can: {nearest}" if nearest else "what can: " + ", ".join(names())
        )
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
