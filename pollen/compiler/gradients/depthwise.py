"""Gradients of depthwise convolution, as depthwise convolutions."""

from typing import Any, Final

import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of, refuse
from pollen.compiler.gradients.windows import Axis, axis, pad, spread

# TFLite's kernel sums a row of outputs in a buffer of 4,832 floats, which all channels must fit into.
_MOST_CHANNELS: Final = 4096


@gradient_of("DepthwiseConv2dNative")
def depthwise_conv2d(op: tf.Operation, dy: Any) -> tuple[Any, Any]:
    """Gradients for the input [N, H, W, C] and the filter [KH, KW, C, M]; dy is [N, OH, OW, C M]."""
    x, kernel = op.inputs
    if op.get_attr("data_format") != b"NHWC":
        refuse(op, "its channels come first; use channels_last")
    _, height, width, _ = x.shape.as_list()
    rows, columns, _, _ = kernel.shape.as_list()
    strides, dilations = op.get_attr("strides"), op.get_attr("dilations")
    padding = op.get_attr("padding").decode()
    vertical = axis(height, rows, strides[1], dilations[1], padding)
    horizontal = axis(width, columns, strides[2], dilations[2], padding)
    return _for_input(kernel, dy, vertical, horizontal), _for_filter(x, dy, vertical, horizontal)


def _for_input(kernel: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Full correlation of dy, spread by the stride, with the flipped kernel, summed over the M of each channel."""
    g = spread(dy, vertical, horizontal)
    margins = []
    for a, length in ((vertical, g.shape[1]), (horizontal, g.shape[2])):
        before = a.extent - a.before
        # So padded that a VALID convolution with stride 1 gives exactly a.size.
        margins.append((before, a.size + a.extent - length - before))
    rows, columns, channels, multiplier = kernel.shape.as_list()
    flipped = tf.reshape(kernel, [rows, columns, channels * multiplier, 1])
    if rows > 1:
        flipped = tf.reverse(flipped, [0])
    if columns > 1:
        flipped = tf.reverse(flipped, [1])
    spread_out = _convolve(pad(g, margins[0], margins[1]), flipped, (1, 1), (vertical.dilation, horizontal.dilation))
    if multiplier == 1:
        return spread_out
    n, height, width, _ = spread_out.shape.as_list()
    parts = tf.reshape(spread_out, [n * height * width, channels, multiplier])
    return tf.reshape(tf.reduce_sum(parts, 2), [n, height, width, channels])


def _for_filter(x: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Correlate each channel of each example with its dy, then sum over the examples.

    Examples stand beside channels, [1, H, W, N C], and dy is the filter [OH, OW, N C, M]; stride and dilation change
    places.
    """
    padded = pad(x, (vertical.before, vertical.after), (horizontal.before, horizontal.after))
    n, _, _, channels = padded.shape.as_list()
    filters = dy.shape[3]
    most = max(_MOST_CHANNELS // filters, 1)
    counts = [min(most, n - first) for first in range(0, n, most)]
    sums = [
        _correlation(images, gradients, vertical, horizontal)
        for images, gradients in zip(tf.split(padded, counts), tf.split(dy, counts), strict=True)
    ]
    total = tf.add_n(sums)
    return tf.reshape(total, [vertical.taps, horizontal.taps, channels, filters // channels])


def _correlation(x: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """The filter's gradient [KH KW, C M] from so many examples as fit side by side."""
    n, height, width, channels = x.shape.as_list()
    _, rows, columns, filters = dy.shape.as_list()
    correlation = _convolve(
        tf.reshape(tf.transpose(x, [1, 2, 0, 3]), [1, height, width, n * channels]),
        tf.reshape(tf.transpose(dy, [1, 2, 0, 3]), [rows, columns, n * channels, filters // channels]),
        (vertical.dilation, horizontal.dilation),
        (vertical.stride, horizontal.stride),
    )
    # With strides, elements past the last window give rows that belong to no tap.
    taps = tf.slice(correlation, [0, 0, 0, 0], [1, vertical.taps, horizontal.taps, n * filters])
    return tf.reduce_sum(tf.reshape(taps, [vertical.taps * horizontal.taps, n, filters]), 1)


def _convolve(x: Any, kernel: Any, strides: tuple[int, int], dilations: tuple[int, int]) -> Any:
    """VALID depthwise convolution; the raw op, since tf.nn's moves dilated examples into the batch first."""
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x,
        filter=kernel,
        strides=[1, *strides, 1],
        padding="VALID",
        dilations=[1, *dilations, 1],
    )
