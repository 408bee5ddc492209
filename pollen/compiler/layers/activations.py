"""Activation functions and layers that can be compiled."""

from typing import Any, Final

import keras

ACTIVATIONS: Final = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "mish",
    "silu",
    "tanh",
    "sigmoid",
    "log_sigmoid",
    "softplus",
    "softsign",
    "softmax",
    "log_softmax",
    "exponential",
    "squareplus",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "hard_shrink",
    "soft_shrink",
    "tanh_shrink",
    "sparse_plus",
    "sparse_sigmoid",
)
_ALLOWED_ACTIVATIONS: Final = {getattr(keras.activations, name): name for name in ACTIVATIONS}


def activation_name(function: Any) -> str | None:
    """The name of one of `ACTIVATIONS`, or None when `function` is none of them."""
    try:
        return _ALLOWED_ACTIVATIONS.get(function)
    except TypeError:
        return None


def problem_with_activation(layer: Any, attribute: str = "activation") -> str | None:
    """Why the activation function in `layer`'s `attribute` can't be compiled."""
    function = getattr(layer, attribute)
    if activation_name(function) is not None:
        return None
    name = getattr(function, "__name__", type(function).__name__)
    nearest = "softmax" if name == "sparsemax" else "one of " + ", ".join(ACTIVATIONS)
    return f"its {attribute} {name} has no gradient on the device; use {nearest}"
