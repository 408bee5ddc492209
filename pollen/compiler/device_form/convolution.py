"""Conv1D and Conv2D in forms that device interpreters compute, and compute quickly."""

from typing import Any

import keras
import tensorflow as tf

from pollen.compiler.gradients.convolution import convolve


def multiply_patches(layer: Any) -> None:
    """Make a Conv1D or Conv2D compute without a CONV_2D; other layers stay as they are."""
    if type(layer) not in (keras.layers.Conv1D, keras.layers.Conv2D):
        return

    def call(inputs: Any) -> Any:
        kernel, padding = tf.convert_to_tensor(layer.kernel), layer.padding.upper()
        strides, dilations = tuple(layer.strides), tuple(layer.dilation_rate)
        if layer.rank == 1:  # a single row
            inputs, kernel = tf.expand_dims(inputs, 1), tf.expand_dims(kernel, 0)
            strides, dilations = (1, *strides), (1, *dilations)
        outputs = convolve(inputs, kernel, strides, dilations, padding)
        if layer.rank == 1:
            outputs = tf.squeeze(outputs, [1])
        return layer.activation(outputs + tf.convert_to_tensor(layer.bias) if layer.use_bias else outputs)

    layer.call = call


def split_groups(layer: Any) -> None:
    """Make a Conv1D or Conv2D with `groups` > 1 convolve each group for itself; other layers stay as they are."""
    if type(layer) not in (keras.layers.Conv1D, keras.layers.Conv2D) or layer.groups == 1:
        return

    def call(inputs: Any) -> Any:
        padding = layer.padding
        if padding == "causal":
            inputs = tf.pad(inputs, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
            padding = "valid"
        parts = tf.split(inputs, layer.groups, -1)
        kernels = tf.split(tf.convert_to_tensor(layer.kernel), layer.groups, -1)
        convolved = [
            keras.ops.conv(part, kernel, list(layer.strides), padding, dilation_rate=layer.dilation_rate)
            for part, kernel in zip(parts, kernels, strict=True)
        ]
        outputs = tf.concat(convolved, -1)
        return layer.activation(outputs + tf.convert_to_tensor(layer.bias) if layer.use_bias else outputs)

    layer.call = call
