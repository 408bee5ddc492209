"""Layers without weights that bring tensors into another shape or scale, or join several."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile

_LAYERS = keras.layers


@can_compile(
    _LAYERS.Flatten,
    _LAYERS.Reshape,
    _LAYERS.Permute,
    _LAYERS.RepeatVector,
    _LAYERS.ZeroPadding1D,
    _LAYERS.ZeroPadding2D,
    _LAYERS.Cropping1D,
    _LAYERS.Cropping2D,
    _LAYERS.UpSampling1D,
    _LAYERS.Rescaling,
    _LAYERS.Normalization,
    _LAYERS.Identity,
    _LAYERS.Add,
    _LAYERS.Subtract,
    _LAYERS.Multiply,
    _LAYERS.Average,
    _LAYERS.Maximum,
    _LAYERS.Minimum,
    _LAYERS.Concatenate,
)
def _plain(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None


@can_compile(_LAYERS.UpSampling2D)
def _up_sampling(layer: Any) -> Problem:
    if layer.interpolation != "nearest":
        return f"interpolation={layer.interpolation} has no gradient on the device; use nearest"
    return None
