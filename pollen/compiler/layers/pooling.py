"""Pooling."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile

_LAYERS = keras.layers


@can_compile(
    _LAYERS.MaxPooling1D,
    _LAYERS.MaxPooling2D,
    _LAYERS.AveragePooling1D,
    _LAYERS.AveragePooling2D,
    _LAYERS.GlobalMaxPooling1D,
    _LAYERS.GlobalMaxPooling2D,
    _LAYERS.GlobalAveragePooling1D,
    _LAYERS.GlobalAveragePooling2D,
)
def _pooling(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None
