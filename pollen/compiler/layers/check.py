"""The check of a whole model, layer by layer, before anything is traced."""

from typing import Any, Final

import keras

from pollen.compiler.layers.embedding import input_below
from pollen.compiler.layers.registry import Problem, check_of, names
from pollen.errors import CompileError

# For what people try first; any other layer gets the whole list.
_NEAREST: Final = {
    "RNN": "GRU",
    "StackedRNNCells": "GRU",
    "ConvLSTM1D": "Conv1D and LSTM",
    "ConvLSTM2D": "Conv2D in TimeDistributed, and LSTM",
    "ConvLSTM3D": "Conv2D in TimeDistributed, and LSTM",
    "Conv3D": "Conv2D in TimeDistributed",
    "Conv3DTranspose": "Conv2DTranspose in TimeDistributed",
    "MaxPooling3D": "MaxPooling2D in TimeDistributed",
    "AveragePooling3D": "AveragePooling2D in TimeDistributed",
    "GlobalMaxPooling3D": "GlobalMaxPooling2D in TimeDistributed",
    "GlobalAveragePooling3D": "GlobalAveragePooling2D in TimeDistributed",
    "AdaptiveAveragePooling1D": "AveragePooling1D",
    "AdaptiveAveragePooling2D": "AveragePooling2D",
    "AdaptiveMaxPooling1D": "MaxPooling1D",
    "AdaptiveMaxPooling2D": "MaxPooling2D",
    "ZeroPadding3D": "ZeroPadding2D in TimeDistributed",
    "Cropping3D": "Cropping2D in TimeDistributed",
    "UpSampling3D": "UpSampling2D in TimeDistributed",
    "Resizing": "UpSampling2D or AveragePooling2D",
    "Dot": "Multiply",
    "SpatialDropout1D": "Dropout",
    "SpatialDropout2D": "Dropout",
    "GaussianDropout": "Dropout",
    "GaussianNoise": "Dropout",
    "AlphaDropout": "Dropout",
    "Sequential": "its layers themselves, put into the model one by one",
    "Functional": "its layers themselves, put into the model one by one",
    "Masking": "sequences of one length, padded where they are made",
}
_REGULARIZERS: Final = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


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
    _check_owners(model)
    _check_ends(model)


def _problem(layer: Any) -> Problem:
    specific = check_of(layer)
    if not isinstance(layer, keras.Layer):
        return f"it is an operation outside a layer; use a layer that can be compiled: {', '.join(names())}"
    if specific is None:
        nearest = _NEAREST.get(type(layer).__name__)
        return "this version has no gradient for it; " + (
            f"nearest that can: {nearest}" if nearest else "what can: " + ", ".join(names())
        )
    if layer.dtype_policy.name != "float32":
        return f"its dtype policy is {layer.dtype_policy.name}; use float32"
    if any(part.activity_regularizer is not None for part in layer._flatten_layers()):
        return "activity_regularizer isn't part of the device's loss; leave it out"
    for variable in layer.variables:
        if variable.constraint is not None:
            return f"its {variable.name} has a constraint, which isn't applied on the device; leave it out"
        if variable.regularizer is not None and type(variable.regularizer) not in _REGULARIZERS:
            return f"its {variable.name} has a {type(variable.regularizer).__name__}; use L1, L2 or L1L2"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "data_format channels_first isn't supported; use channels_last"
    return specific(layer)


def _check_owners(model: Any) -> None:
    """No weights in two layers, as where one is used alone and in a wrapper: the copy would have two of each."""
    owners: dict[int, Any] = {}
    for layer in model.layers:
        for variable in layer.variables:
            first = owners.setdefault(id(variable), layer)
            if first is not layer:
                raise CompileError(
                    f"layer {layer.name!r} ({type(layer).__name__}) can't be compiled: it shares its {variable.name} "
                    f"with layer {first.name!r} ({type(first).__name__}); give it a layer of its own"
                )


def _check_ends(model: Any) -> None:
    """One input and one float32 output of known shapes, and something to train; int32 inputs for an Embedding."""
    input_dtypes = ("float32", "int32") if input_below(model) else ("float32",)
    for word, tensors, dtypes in (("input", model.inputs, input_dtypes), ("output", model.outputs, ("float32",))):
        if len(tensors) != 1:
            raise CompileError(f"model {model.name!r} has {len(tensors)} {word}s; one is supported")
        shape = tensors[0].shape[1:]
        if not shape or None in shape:
            raise CompileError(
                f"model {model.name!r}: its {word} has the shape {tuple(tensors[0].shape)}; "
                "all lengths but the batch must be fixed"
            )
        if tensors[0].dtype not in dtypes:
            raise CompileError(
                f"model {model.name!r}: its {word} is {tensors[0].dtype}; use float32, or int32 for an Embedding"
            )
    if not model.trainable_variables:
        raise CompileError(f"model {model.name!r} has no trainable weights; add a Dense or Conv1D layer")
