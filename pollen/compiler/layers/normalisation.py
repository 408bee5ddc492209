"""Layers that bring values to mean 0 and variance 1, or to unit length."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile

_LAYERS = keras.layers


@can_compile(_LAYERS.BatchNormalization)
def _batch(layer: Any) -> Problem:
    if layer.renorm:
        return "renorm isn't supported; leave it out"
    return "synchronized=True is for several replicas; leave it out" if layer.synchronized else None


@can_compile(_LAYERS.GroupNormalization)
def _group(layer: Any) -> Problem:
    dimensions = layer.input_spec.ndim
    if dimensions > 3 and layer.axis != -1:
        return f"axis={layer.axis} isn't supported for {dimensions} dimensions; use axis=-1"
    return None


@can_compile(_LAYERS.LayerNormalization, _LAYERS.RMSNormalization, _LAYERS.UnitNormalization)
def _within_example(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None
