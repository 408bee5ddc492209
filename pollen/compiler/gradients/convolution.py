"""Convolution as a matrix product of patches and the kernel, and its gradients as such products.

The interpreters compute a convolution whose kernel is an input with kernels of their own, at a third of the speed of
XNNPACK's matrix product, which takes inputs on both sides.
"""

from collections.abc import Sequence
from typing import Any, Final

import tensorflow as tf

from pollen.compiler.gradients.patches import padded, sum_of_taps, taps
from pollen.compiler.gradients.registry import gradient_of, refuse
from pollen.compiler.gradients.windows import Axis, axis

# Concatenation copies runs of as many numbers as there are channels; with fewer the other layout is quicker.
_FEW_CHANNELS: Final = 4


@gradient_of("Conv2D")
def conv2d(op: tf.Operation, dy: Any) -> tuple[Any, Any]:
    """Gradients for the input [N, H, W, CI] and the filter [KH, KW, CI, CO]; Conv1D is the case H = KH = 1."""
    x, kernel = op.inputs
    if op.get_attr("data_format") != b"NHWC" or kernel.shape[2] != x.shape[3]:
        refuse(op, "its channels come first or in groups; use channels_last and a convolution for each group")
    strides, dilations = op.get_attr("strides")[1:3], op.get_attr("dilations")[1:3]
    vertical, horizontal = _axes(x, kernel, strides, dilations, op.get_attr("padding").decode())
    return _for_input(kernel, dy, vertical, horizontal), _for_filter(x, dy, vertical, horizontal)


def convolve(x: Any, kernel: Any, strides: Sequence[int], dilations: Sequence[int], padding: str) -> Any:
    """The convolution [N, OH, OW, CO] of `x` [N, H, W, CI] with `kernel` [KH, KW, CI, CO], without a CONV_2D.

    `strides`, `dilations`: of rows and columns; `padding`: "SAME", "VALID" or "CAUSAL". With G groups the kernel is
    [KH, KW, CI / G, CO].
    """
    groups = x.shape[3] // kernel.shape[2]
    if groups > 1:
        pairs = zip(tf.split(x, groups, 3), tf.split(kernel, groups, 3), strict=True)
        return tf.concat([convolve(part, weights, strides, dilations, padding) for part, weights in pairs], 3)
    vertical, horizontal = _axes(x, kernel, strides, dilations, padding)

    @tf.custom_gradient
    def product(x: Any, kernel: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, Any]:
            return _for_input(kernel, dy, vertical, horizontal), _for_filter(x, dy, vertical, horizontal)

        filters = kernel.shape[3]
        weights = tf.reshape(kernel, [-1, filters])
        if x.shape[3] <= _FEW_CHANNELS:
            y = tf.matmul(_columns(x, vertical, horizontal), weights, transpose_a=True)
        else:
            y = tf.matmul(_rows(x, vertical, horizontal), weights)
        return tf.reshape(y, [x.shape[0], vertical.outputs, horizontal.outputs, filters]), gradient

    return product(x, kernel)


def _axes(x: Any, kernel: Any, strides: Sequence[int], dilations: Sequence[int], padding: str) -> tuple[Axis, Axis]:
    first, second = (
        axis(x.shape[along + 1], kernel.shape[along], strides[along], dilations[along], padding) for along in (0, 1)
    )
    return first, second


def _rows(x: Any, vertical: Axis, horizontal: Axis) -> Any:
    """[N, OH OW, KH KW C]: what the window of each output sees, as one row."""
    n, _, _, channels = x.shape.as_list()
    lines = tf.reshape(padded(x, vertical, horizontal), [n * vertical.span, horizontal.span, channels])
    seen = _concat(taps(lines, horizontal), 2)
    seen = tf.reshape(seen, [n, vertical.span * horizontal.outputs, horizontal.taps * channels])
    return _concat(taps(seen, vertical, horizontal.outputs), 2)


def _columns(x: Any, vertical: Axis, horizontal: Axis) -> Any:
    """[N, KH KW C, OH OW]: what the window of each output sees, as one column."""
    n, height, width, channels = x.shape.as_list()
    planes = tf.reshape(tf.transpose(x, [0, 3, 1, 2]), [n * channels, height, width, 1])
    lines = tf.reshape(padded(planes, vertical, horizontal), [n * channels * vertical.span, horizontal.span, 1])
    seen = _concat([tf.reshape(part, [n, -1]) for part in taps(lines, horizontal)], 1)
    seen = tf.reshape(seen, [n * horizontal.taps * channels, vertical.span * horizontal.outputs, 1])
    seen = _concat([tf.reshape(part, [n, -1]) for part in taps(seen, vertical, horizontal.outputs)], 1)
    return tf.reshape(seen, [n, vertical.taps * horizontal.taps * channels, vertical.outputs * horizontal.outputs])


def _concat(parts: list[Any], along: int) -> Any:
    return tf.concat(parts, along) if len(parts) > 1 else parts[0]


def _for_filter(x: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Each tap's patches times dy, example by example: what a product has to transpose stays in the cache."""
    n, height, width, filters = dy.shape.as_list()
    if x.shape[3] <= _FEW_CHANNELS:
        g = tf.matmul(_columns(x, vertical, horizontal), tf.reshape(dy, [n, height * width, filters]))
        g = tf.reduce_sum(g, 0)
    else:
        columns = tf.reshape(tf.transpose(dy, [0, 3, 1, 2]), [n, filters, height * width])
        g = tf.transpose(tf.reduce_sum(tf.matmul(columns, _rows(x, vertical, horizontal)), 0))
    return tf.reshape(g, [vertical.taps, horizontal.taps, x.shape[3], filters])


def _for_input(kernel: Any, dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """Each output's gradient times the kernel, summed where windows overlap."""
    n, height, width, filters = dy.shape.as_list()
    rows, columns, channels, _ = kernel.shape.as_list()
    # With a batch axis, or the converter would make a FULLY_CONNECTED of it, which XNNPACK doesn't take.
    weights = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [1, filters, rows * columns * channels])
    g = tf.matmul(tf.reshape(dy, [n, height * width, filters]), weights)
    g = sum_of_taps([tf.reshape(p, [n, height, -1]) for p in _slices(g, rows)], vertical)
    g = tf.reshape(g, [n * vertical.size, width, columns * channels])
    return tf.reshape(sum_of_taps(_slices(g, columns), horizontal), [n, vertical.size, horizontal.size, channels])


def _slices(t: Any, count: int) -> list[Any]:
    """`t` [outer, length, count inner] cut into `count` along the last axis; slices are quicker than a split."""
    outer, length, width = t.shape.as_list()
    inner = width // count
    return [tf.slice(t, [0, 0, i * inner], [outer, length, inner]) for i in range(count)]
