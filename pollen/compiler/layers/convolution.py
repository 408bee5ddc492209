"""Convolution and pooling."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile, first_problem

_LAYERS = keras.layers


@can_compile(_LAYERS.Conv1D)
def _convolution(layer: Any) -> Problem:
    if layer.groups != 1:
        return f"groups={layer.groups} has no gradient on the device; use groups=1"
    return first_problem(layer)


@can_compile(
    _LAYERS.MaxPooling1D,
    _LAYERS.AveragePooling1D,
    _LAYERS.GlobalAveragePooling1D,
    _LAYERS.GlobalMaxPooling1D,
)
def _pooling(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None
