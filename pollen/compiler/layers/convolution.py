"""Convolution."""

from typing import Any, Final

import keras

from pollen.compiler.layers.registry import Problem, can_compile, first_problem

_LAYERS = keras.layers
# Above it both interpreters' kernels never return.
_MOST_DEPTHWISE: Final = 4832


@can_compile(_LAYERS.Conv1D, _LAYERS.Conv2D)
def _convolution(layer: Any) -> Problem:
    return first_problem(layer)


@can_compile(
    _LAYERS.DepthwiseConv1D,
    _LAYERS.DepthwiseConv2D,
    _LAYERS.SeparableConv1D,
    _LAYERS.SeparableConv2D,
)
def _depthwise(layer: Any) -> Problem:
    if len(set(layer.strides)) > 1:
        return f"strides={layer.strides} can't be computed by Keras either; use the same for rows and columns"
    kernel = layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel
    channels = kernel.shape[-1] * kernel.shape[-2]
    if channels > _MOST_DEPTHWISE:
        return f"{channels} channels are more than its kernel on the device has room for; use at most {_MOST_DEPTHWISE}"
    return first_problem(layer)


@can_compile(_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose)
def _transposed(layer: Any) -> Problem:
    if any(rate > 1 for rate in layer.dilation_rate):
        return f"dilation_rate={layer.dilation_rate} has no kernel on the device; use dilation_rate=1"
    return first_problem(layer)
