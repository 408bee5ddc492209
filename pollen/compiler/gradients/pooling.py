"""Gradients of pooling."""

from typing import Any

import numpy as np
import tensorflow as tf

from pollen.compiler.gradients.activations import sign
from pollen.compiler.gradients.registry import gradient_of
from pollen.compiler.gradients.windows import Axis, axis, pad, scatter, tap

_BELOW_ALL = -3.0e38


def _axes(op: tf.Operation) -> tuple[Axis, Axis]:
    _, height, width, _ = op.inputs[0].shape.as_list()
    if op.get_attr("data_format") != b"NHWC":
        raise NotImplementedError("pooling with channels first")
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
    margins = (vertical.before, vertical.after), (horizontal.before, horizontal.after)
    padded = pad(op.inputs[0], *margins, value=_BELOW_ALL)
    largest = op.outputs[0]
    left = dy  # what is still to be given away
    taps = []
    for i in range(vertical.taps):
        row = []
        for j in range(horizontal.taps):
            if (i, j) == (vertical.taps - 1, horizontal.taps - 1):
                row.append(left)
                break
            rest = left * sign(largest - tap(padded, i, j, vertical, horizontal))
            row.append(left - rest)
            left = rest
        taps.append(row)
    return scatter(taps, vertical, horizontal)


@gradient_of("AvgPool")
def average_pool(op: tf.Operation, dy: Any) -> Any:
    """Each element of a window gets an equal share; padding is not counted, as in TensorFlow."""
    vertical, horizontal = _axes(op)
    counts = np.outer(_counts(vertical), _counts(horizontal)).astype(np.float32)
    share = dy * (1.0 / counts[None, :, :, None])
    return scatter([[share] * horizontal.taps] * vertical.taps, vertical, horizontal)


def _counts(a: Axis) -> Any:
    """How many real elements each window along an axis holds."""
    first = np.arange(a.outputs) * a.stride - a.before
    return np.minimum(first + a.taps, a.size) - np.maximum(first, 0)
