"""Normalisation layers in forms that a copy and all interpreters compute right."""

import math
from typing import Any

import keras
import tensorflow as tf


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


def average_by_axis(layer: Any) -> None:
    """Make a BatchNormalization average over one axis after the other; other layers stay as they are.

    The interpreters add all values up in one float32. Over the 50,000 of a channel that made the gradient differ by
    3e-4 of its largest value from that in float64; axis by axis it is 3e-6, Keras's own 4e-5.
    """
    if type(layer) is not keras.layers.BatchNormalization:
        return

    def mean(values: Any) -> Any:
        for axis in sorted(layer._reduction_axes, reverse=True):
            values = tf.reduce_mean(values, axis)
        return values

    def moments(inputs: Any, mask: None) -> tuple[Any, Any]:  # noqa: ARG001 - masks are refused
        average = mean(inputs)
        shape = [size if axis == layer.axis % len(inputs.shape) else 1 for axis, size in enumerate(inputs.shape)]
        return average, mean(tf.math.squared_difference(inputs, tf.stop_gradient(tf.reshape(average, shape))))

    layer._moments = moments
