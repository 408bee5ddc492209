"""Which Keras layers can be compiled: an explicit list; everything else is refused by the layer's name.

To add a layer: write its check in the file of its family and decorate it with `@can_compile(keras.layers.Kind)`.
"""

from pollen.compiler.layers import convolution, dense, elementwise
from pollen.compiler.layers.activations import ACTIVATIONS, activation_name
from pollen.compiler.layers.check import check

__all__ = ["ACTIVATIONS", "activation_name", "check", "convolution", "dense", "elementwise"]
