"""Gradients of convolution, as convolutions."""

from typing import Any

import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of
from pollen.compiler.gradients.windows import Axis, axis, pad, spread


@gradient_of("Conv2D")
def conv2d(op: tf.Operation, dy: Any) -> tuple[Any, Any]:
    """Gradients for the input [N, H, W, CI] and the filter [KH, KW, CI, CO]; Conv1D is the case H = KH = 1."""
    x, kernel = op.inputs
    _, height, width, channels = x.shape.as_list()
    rows, columns, depth, _ = kernel.shape.as_list()
    if op.get_attr("data_format") != b"NHWC" or depth != channels:
        raise NotImplementedError("convolution with channels first or in groups")
    strides, dilations = op.get_attr("strides"), op.get_attr("dilations")
    padding = op.get_attr("padding").decode()
    vertical = axis(height, rows, strides[1], dilations[1], padding)
    horizontal = axis(width, columns, strides[2], dilations[2], padding)
    return _for_input(kernel, dy, vertical, horizontal), _for_filter(x, dy, vertical, horizontal)


def _for_filter(x: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Correlate x with dy: the batch takes the place of the channels, stride and dilation change places."""
    padded = pad(x, (vertical.before, vertical.after), (horizontal.before, horizontal.after))
    correlation = tf.nn.conv2d(
        tf.transpose(padded, [3, 1, 2, 0]),
        tf.transpose(dy, [1, 2, 0, 3]),
        strides=[vertical.dilation, horizontal.dilation],
        padding="VALID",
        dilations=[vertical.stride, horizontal.stride],
    )
    channels, _, _, filters = correlation.shape.as_list()
    # With strides, elements past the last window give rows that belong to no tap.
    taps = tf.slice(correlation, [0, 0, 0, 0], [channels, vertical.taps, horizontal.taps, filters])
    return tf.transpose(taps, [1, 2, 0, 3])


def _for_input(kernel: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Full correlation of dy, spread by the stride, with the flipped kernel."""
    g = spread(dy, vertical, horizontal)
    margins = []
    for a, length in ((vertical, g.shape[1]), (horizontal, g.shape[2])):
        before = a.extent - a.before
        # So padded that a VALID convolution with stride 1 gives exactly a.size.
        margins.append((before, a.size + a.extent - length - before))
    flipped = kernel
    if vertical.taps > 1:
        flipped = tf.reverse(flipped, [0])
    if horizontal.taps > 1:
        flipped = tf.reverse(flipped, [1])
    return tf.nn.conv2d(
        pad(g, margins[0], margins[1]),
        tf.transpose(flipped, [0, 1, 3, 2]),
        strides=1,
        padding="VALID",
        dilations=[vertical.dilation, horizontal.dilation],
    )
