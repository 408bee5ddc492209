"""Gradients made of builtin ops only.

TensorFlow's own gradient functions emit ops that have no TFLite builtin (ReluGrad, Conv2DBackpropFilter,
MaxPoolGrad, …). Each is expressed here again with ops that do, and switched on with the public
`tf.RegisterGradient` and `Graph.gradient_override_map`, so Keras and the user's model stay as they are.

To add an op: write one function in the file of its family and decorate it with `@gradient_of("OpType")`.
"""

from pollen.compiler.gradients import (
    activations,
    convolution,
    depthwise,
    gather,
    means,
    pooling,
    slicing,
    tiling,
    transposed,
)
from pollen.compiler.gradients.registry import overrides

__all__ = [
    "activations",
    "convolution",
    "depthwise",
    "gather",
    "means",
    "overrides",
    "pooling",
    "slicing",
    "tiling",
    "transposed",
]
