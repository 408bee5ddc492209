"""The geometry that convolution and pooling share: where a window lies on the input, along both axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

HEIGHT, WIDTH = 1, 2  # axes of an NHWC tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """Windows along one axis: `outputs` of them, `stride` apart, on `size` elements padded by `before`, `after`.

    A window has `taps` elements, `dilation` apart. "SAME" pads as TensorFlow does, the odd element after.
    """

    size: int
    taps: int
    stride: int
    dilation: int
    outputs: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """Distance from a window's first to its last element."""
        return (self.taps - 1) * self.dilation

    @property
    def step(self) -> int:
        """The stride; with a single window, for which any would do, the one that makes it tile the axis."""
        return self.stride if self.outputs > 1 else self.extent + 1

    @property
    def span(self) -> int:
        """The least multiple of `step` that holds all windows, from the first one's first element."""
        return (self.extent // self.step + self.outputs) * self.step


def axis(size: int, taps: int, stride: int, dilation: int, padding: str) -> Axis:
    """The windows of a convolution or pooling op along one axis; padding "SAME", "VALID" or, before only, "CAUSAL"."""
    extent = (taps - 1) * dilation
    if padding == "VALID":
        return Axis(size, taps, stride, dilation, (size - extent - 1) // stride + 1, 0, 0)
    outputs = -(-size // stride)
    if padding == "CAUSAL":
        return Axis(size, taps, stride, dilation, outputs, extent, 0)
    total = max((outputs - 1) * stride + extent + 1 - size, 0)
    return Axis(size, taps, stride, dilation, outputs, total // 2, total - total // 2)


def pad(x: Any, height: tuple[int, int], width: tuple[int, int], value: float = 0.0) -> Any:
    """NHWC `x` with (before, after) elements of `value` added along both spatial axes; negative ones crop."""
    n, h, w, c = x.shape.as_list()
    # A pad costs by the run, so columns and channels are folded into one axis.
    folded = fit(tf.reshape(x, [n, h, w * c]), [height[0], width[0] * c], [height[1], width[1] * c], value)
    return tf.reshape(folded, [n, h + sum(height), w + sum(width), c])


def fit(t: Any, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Any:
    """`t` with elements of `value` added before and after along its axes but the first; negative numbers crop."""
    if min(*before, *after) < 0:
        start = [max(-amount, 0) for amount in before]
        end = [length - max(-amount, 0) for length, amount in zip(t.shape[1:], after, strict=True)]
        t = tf.slice(t, [0, *start], [t.shape[0], *(e - s for s, e in zip(start, end, strict=True))])
    if max(*before, *after) > 0:
        amounts = [[max(b, 0), max(a, 0)] for b, a in zip(before, after, strict=True)]
        t = tf.pad(t, [[0, 0], *amounts], constant_values=value)
    return t


def spread(dy: Any, vertical: Axis, horizontal: Axis) -> Any:
    """`dy` [N, OH, OW, C] with stride - 1 zeros between neighbours: [N, (OH - 1) SH + 1, (OW - 1) SW + 1, C]."""
    return _spread_along(_spread_along(dy, HEIGHT, vertical.stride), WIDTH, horizontal.stride)


def _spread_along(t: Any, along: int, stride: int) -> Any:
    shape = t.shape.as_list()
    length = shape[along]
    if stride == 1 or length == 1:
        return t
    # Zeros after each element, then without those after the last. The rows before and the columns behind are
    # folded, so that every op stays within the four dimensions that all interpreters take.
    outer, inner = 1, 1
    for size in shape[:along]:
        outer *= size
    for size in shape[along + 1 :]:
        inner *= size
    t = tf.pad(tf.reshape(t, [outer * length, 1, inner]), [[0, 0], [0, stride - 1], [0, 0]])
    t = tf.slice(tf.reshape(t, [outer, length * stride, inner]), [0, 0, 0], [outer, (length - 1) * stride + 1, inner])
    shape[along] = (length - 1) * stride + 1
    return tf.reshape(t, shape)
