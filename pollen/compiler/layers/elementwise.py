"""Layers that work on each value for itself: activations as layers, dropout."""

from typing import Any

import keras

from pollen.compiler.layers.activations import problem_with_activation
from pollen.compiler.layers.registry import Problem, can_compile

_LAYERS = keras.layers


@can_compile(_LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.PReLU, _LAYERS.ELU)
def _plain(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None


@can_compile(_LAYERS.Activation)
def _activation(layer: Any) -> Problem:
    return problem_with_activation(layer)


@can_compile(_LAYERS.Dropout)
def _dropout(layer: Any) -> Problem:
    if layer.noise_shape is not None:
        return "noise_shape isn't supported; leave it out"
    return "rate=1 drops everything; use a lower rate" if layer.rate >= 1 else None


@can_compile(_LAYERS.Softmax)
def _softmax(layer: Any) -> Problem:
    return None if layer.axis == -1 else f"axis={layer.axis} isn't supported; use axis=-1"
