"""Gradients of pooling."""

from typing import Any, Final

import numpy as np
import tensorflow as tf

from pollen.compiler.gradients.activations import sign
from pollen.compiler.gradients.patches import padded, sum_of_taps, taps
from pollen.compiler.gradients.registry import gradient_of, refuse
from pollen.compiler.gradients.windows import Axis, axis

_BELOW_ALL: Final = -3.0e38


def _axes(op: tf.Operation) -> tuple[Axis, Axis]:
    _, height, width, _ = op.inputs[0].shape.as_list()
    if op.get_attr("data_format") != b"NHWC":
        refuse(op, "its channels come first; use channels_last")
    size, strides = op.get_attr("ksize"), op.get_attr("strides")
    padding = op.get_attr("padding").decode()
    return (
        axis(height, size[1], strides[1], 1, padding),
        axis(width, size[2], strides[2], 1, padding),
    )


@gradient_of("MaxPool")
def max_pool(op: tf.Operation, dy: Any) -> Any:
    """The first maximum of each window gets its gradient, as in TensorFlow."""
    vertical, horizontal = _axes(op)
    n, _, _, channels = dy.shape.as_list()
    shape = [n * vertical.outputs, horizontal.outputs, channels]
    largest = tf.reshape(op.outputs[0], shape)
    left = tf.reshape(dy, shape)  # what is still to be given away
    parts = []
    for i, line in enumerate(taps(padded(op.inputs[0], vertical, horizontal, _BELOW_ALL), vertical)):
        row = []
        for j, seen in enumerate(taps(tf.reshape(line, [-1, horizontal.span, channels]), horizontal)):
            if (i, j) == (vertical.taps - 1, horizontal.taps - 1):
                row.append(left)
                break
            rest = left * sign(largest - seen)
            row.append(left - rest)
            left = rest
        parts.append(row)
    return _scatter(parts, vertical, horizontal, n)


@gradient_of("AvgPool")
def average_pool(op: tf.Operation, dy: Any) -> Any:
    """Each element of a window gets an equal share; padding is not counted, as in TensorFlow."""
    vertical, horizontal = _axes(op)
    n, height, width, channels = dy.shape.as_list()
    counts = np.outer(_counts(vertical), _counts(horizontal)).astype(np.float32)
    share = tf.reshape(dy * (1.0 / counts[None, :, :, None]), [n * height, width, channels])
    return _scatter([[share] * horizontal.taps] * vertical.taps, vertical, horizontal, n)


def _scatter(parts: list[list[Any]], vertical: Axis, horizontal: Axis, n: int) -> Any:
    """parts[i][j] [N OH, OW, C], the gradient of element (i, j) of each window, summed into [N, H, W, C]."""
    channels = parts[0][0].shape[2]
    rows = [tf.reshape(sum_of_taps(row, horizontal), [n, vertical.outputs, -1]) for row in parts]
    return tf.reshape(sum_of_taps(rows, vertical), [n, vertical.size, horizontal.size, channels])


def _counts(a: Axis) -> Any:
    """How many real elements each window along an axis holds."""
    first = np.arange(a.outputs) * a.stride - a.before
    return np.minimum(first + a.taps, a.size) - np.maximum(first, 0)
