"""Which Keras layers can be compiled: an explicit list; everything else is refused by the layer's name.

To add a layer: write its check in the file of its family and decorate it with `@can_compile(keras.layers.Kind)`.
"""

from pollen.compiler.layers import (
    attention,
    convolution,
    dense,
    elementwise,
    embedding,
    normalisation,
    pooling,
    recurrent,
    shaping,
)
from pollen.compiler.layers.activations import ACTIVATIONS, activation_name
from pollen.compiler.layers.check import check
from pollen.compiler.layers.embedding import input_below

__all__ = [
    "ACTIVATIONS",
    "activation_name",
    "attention",
    "check",
    "convolution",
    "dense",
    "elementwise",
    "embedding",
    "input_below",
    "normalisation",
    "pooling",
    "recurrent",
    "shaping",
]
