"""Normalisation layers in forms that a copy and all interpreters compute right."""

import math
from typing import Any

import keras


class FoldedGroupNormalization(keras.layers.GroupNormalization):
    """The same values, with the axes between batch and channels, [B, …, C], folded to one.

    Keras's own form splits the channels of an image, which gives five dimensions. The product of such tensors of
    unequal shape reads wrong memory in tflite-runtime 2.14: it gave other gradients, or ended the process.
    """

    def call(self, inputs: Any) -> Any:
        """`inputs` normalised within each group of channels, of the same shape."""
        shape = inputs.shape
        if len(shape) <= 3:
            return super().call(inputs)
        folded = keras.ops.reshape(inputs, (-1, math.prod(shape[1:-1]), shape[-1]))
        return keras.ops.reshape(super().call(folded), (-1, *shape[1:]))


class AdaptedNormalization(keras.layers.Normalization):
    """With the mean and variance that its variables hold when it is traced.

    Keras takes them over at `adapt` and when a file is read, but not when variables are assigned, as in a copy.
    """

    def call(self, inputs: Any) -> Any:
        """`inputs` less the mean, divided by the standard deviation."""
        self.finalize_state()
        return super().call(inputs)
