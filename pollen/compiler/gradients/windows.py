"""The geometry that convolution and pooling share: where a window lies on the input, along both axes."""

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
    def tiles(self) -> bool:
        """Whether the windows neither overlap nor leave gaps."""
        return self.stride == self.taps and self.dilation == 1


def axis(size: int, taps: int, stride: int, dilation: int, padding: str) -> Axis:
    """The windows of a convolution or pooling op with padding "SAME" or "VALID" along one axis."""
    extent = (taps - 1) * dilation
    if padding == "VALID":
        return Axis(size, taps, stride, dilation, (size - extent - 1) // stride + 1, 0, 0)
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + extent + 1 - size, 0)
    return Axis(size, taps, stride, dilation, outputs, total // 2, total - total // 2)


def pad(x: Any, height: tuple[int, int], width: tuple[int, int], value: float = 0.0) -> Any:
    """NHWC `x` with (before, after) elements of `value` added along both spatial axes; negative ones crop."""
    crop_h, crop_w = ([max(-amount, 0) for amount in pair] for pair in (height, width))
    if any(crop_h + crop_w):
        n, h, w, c = x.shape.as_list()
        x = tf.slice(x, [0, crop_h[0], crop_w[0], 0], [n, h - sum(crop_h), w - sum(crop_w), c])
    grow_h, grow_w = ([max(amount, 0) for amount in pair] for pair in (height, width))
    if any(grow_h + grow_w):
        x = tf.pad(x, [[0, 0], grow_h, grow_w, [0, 0]], constant_values=value)
    return x


def tap(padded: Any, i: int, j: int, vertical: Axis, horizontal: Axis) -> Any:
    """What element (i, j) of every window sees, [N, OH, OW, C], of an input that is already padded."""
    channels = padded.shape[3]
    begin = [0, i * vertical.dilation, j * horizontal.dilation, 0]
    reach = [(a.outputs - 1) * a.stride + 1 for a in (vertical, horizontal)]
    if vertical.stride == horizontal.stride == 1:
        return tf.slice(padded, begin, [padded.shape[0], *reach, channels])
    end = [padded.shape[0], begin[1] + reach[0], begin[2] + reach[1], channels]
    return tf.strided_slice(padded, begin, end, [1, vertical.stride, horizontal.stride, 1])


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


def scatter(taps: list[list[Any]], vertical: Axis, horizontal: Axis) -> Any:
    """The reverse of `tap` for all elements at once: taps[i][j] [N, OH, OW, C] summed into [N, H, W, C]."""
    if vertical.tiles and horizontal.tiles:
        return _lay_out(taps, vertical, horizontal)
    total = None
    for i, row in enumerate(taps):
        for j, values in enumerate(row):
            g = spread(values, vertical, horizontal)
            top = i * vertical.dilation - vertical.before
            left = j * horizontal.dilation - horizontal.before
            bottom = vertical.size - top - g.shape[HEIGHT]
            right = horizontal.size - left - g.shape[WIDTH]
            g = pad(g, (top, bottom), (left, right))
            total = g if total is None else total + g
    return total


def _lay_out(taps: list[list[Any]], vertical: Axis, horizontal: Axis) -> Any:
    """`scatter` where windows tile the input: elements only have to be put side by side."""
    n, oh, ow, c = taps[0][0].shape.as_list()
    rows = []
    for row in taps:
        side_by_side = tf.concat([tf.reshape(values, [n * oh * ow, 1, c]) for values in row], 1)
        rows.append(tf.reshape(side_by_side, [n * oh, 1, ow * horizontal.taps * c]))
    g = tf.reshape(tf.concat(rows, 1), [n, oh * vertical.taps, ow * horizontal.taps, c])
    bottom = vertical.size + vertical.before - oh * vertical.taps
    right = horizontal.size + horizontal.before - ow * horizontal.taps
    return pad(g, (-vertical.before, bottom), (-horizontal.before, right))
