"""The losses that can be compiled, and whether the model's output are logits or probabilities."""

from typing import Any, Final

import keras
import tensorflow as tf

from pollen.bundle import Loss, Shape
from pollen.compiler.layers import activation_name
from pollen.errors import BundleError, CompileError
from pollen.objective import CLASSIFICATION_LOSSES, LOSSES, SMOOTHED_LOSSES

_CLASSES: Final = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "mse": keras.losses.MeanSquaredError,
    "mae": keras.losses.MeanAbsoluteError,
    "huber": keras.losses.Huber,
}
_ALIASES: Final = {"mean_squared_error": "mse", "mean_absolute_error": "mae"}
# What each cross-entropy takes probabilities from.
_PROBABILITIES: Final = {
    "sparse_categorical_crossentropy": "softmax",
    "categorical_crossentropy": "softmax",
    "binary_crossentropy": "sigmoid",
}
# Other values of these change the loss in ways the device's graph doesn't know.
_PLAIN: Final = {"ignore_class": None, "axis": -1, "reduction": "sum_over_batch_size"}
_SETTINGS: Final = ("from_logits", "delta", "label_smoothing")
# What leaves probabilities probabilities.
_SHAPING: Final = tuple(
    getattr(keras.layers, name)
    for name in (
        "Flatten",
        "Reshape",
        "Permute",
        "RepeatVector",
        "Cropping1D",
        "Cropping2D",
        "UpSampling1D",
        "UpSampling2D",
        "Identity",
        "Dropout",
    )
)


def parse(loss: Any, model: Any) -> Loss:
    """The bundle's description of a loss given by name or as a Keras loss object.

    A cross-entropy given by name takes logits when the model's last activation is linear, probabilities when it
    is softmax or sigmoid. Raises CompileError when the two don't fit.
    """
    settings: dict[str, Any] = {}
    if isinstance(loss, str):
        name = _ALIASES.get(loss, loss)
        if name not in LOSSES:
            raise CompileError(f"loss {loss!r} can't be compiled; use one of {', '.join(LOSSES)}")
    else:
        name, settings = _from_object(loss)
    declared = settings.pop("from_logits", None)
    from_logits = name in CLASSIFICATION_LOSSES and _takes_logits(name, declared, model)
    try:
        return Loss(name, from_logits, **{key: float(value) for key, value in settings.items()})
    except BundleError as error:
        raise CompileError(str(error)) from error


def _takes_logits(name: str, declared: bool | None, model: Any) -> bool:
    """Whether the model's output are logits; CompileError when it fits neither or isn't what was declared."""
    last = _last_activation(model)
    if last not in ("linear", _PROBABILITIES[name]):
        raise CompileError(
            f"loss {name} needs a model that ends with linear or {_PROBABILITIES[name]}, this one ends with {last}"
        )
    from_logits = last == "linear"
    if declared is not None and declared != from_logits:
        raise CompileError(f"loss {name}: from_logits={declared} doesn't fit a model that ends with {last}")
    return from_logits


def _from_object(loss: Any) -> tuple[str, dict[str, Any]]:
    """The name of a Keras loss object, and what it was made with of what the device knows."""
    for name, kind in _CLASSES.items():
        if type(loss) is kind:
            # Huber's own config leaves its delta out.
            config = super(kind, loss).get_config() | loss.get_config()
            for setting, plain in _PLAIN.items():
                if config.get(setting, plain) != plain:
                    raise CompileError(f"loss {name}: {setting}={config[setting]} isn't supported; leave it out")
            return name, {key: config[key] for key in _SETTINGS if key in config}
    kind_name = getattr(loss, "__name__", type(loss).__name__)
    raise CompileError(f"loss {kind_name} can't be compiled; use one of {', '.join(LOSSES)}")


def _last_activation(model: Any) -> str:
    """The activation that made the output, looked for behind layers that only shape it."""
    history = model.outputs[0]._keras_history
    layer = _unwrapped(history.operation)
    while isinstance(layer, _SHAPING):
        history = history.operation._inbound_nodes[history.node_index].input_tensors[0]._keras_history
        layer = _unwrapped(history.operation)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if hasattr(layer, "activation"):
        return activation_name(layer.activation) or "another activation"
    if isinstance(layer, keras.layers.ReLU | keras.layers.LeakyReLU | keras.layers.PReLU | keras.layers.ELU):
        return type(layer).__name__
    return "linear"


def _unwrapped(layer: Any) -> Any:
    return layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer


def labels(loss: Loss, output_shape: Shape) -> tuple[Shape, str]:
    """Shape of one example's label, and its dtype: class indices for sparse_…, else like the output."""
    if loss.name == "sparse_categorical_crossentropy":
        return output_shape[:-1], "int32"
    return output_shape, "float32"


def per_example(loss: Loss, y: Any, output: Any) -> Any:
    """Keras's loss of each example, float32 [B]; as there, the mean over the axes after the first."""
    values = _CLASSES[loss.name](**_arguments(loss)).call(y, output)
    return tf.reduce_mean(values, axis=list(range(1, len(values.shape)))) if len(values.shape) > 1 else values


def _arguments(loss: Loss) -> dict[str, Any]:
    arguments: dict[str, Any] = {"from_logits": loss.from_logits} if loss.name in CLASSIFICATION_LOSSES else {}
    if loss.name in SMOOTHED_LOSSES:
        arguments["label_smoothing"] = loss.label_smoothing
    return arguments | ({"delta": loss.delta} if loss.name == "huber" else {})


def weighted_mean(values: Any, sample_weight: Any) -> Any:
    """The batch's loss, scalar, as Keras reduces it: sum(values · sample_weight) / B, both [B]."""
    return tf.reduce_sum(values * sample_weight) / sample_weight.shape[0]
