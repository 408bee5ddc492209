"""What the windows of a convolution or pooling see, and the way back, one axis at a time.

Made of pads, slices and concatenations that XNNPACK runs on both interpreters, and runs fast: a slice with steps
takes 19 times as long in ai-edge-litert 2.3, and a pad costs by the run, so axes are folded before one.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from pollen.compiler.gradients.windows import Axis, fit


def padded(x: Any, vertical: Axis, horizontal: Axis, value: float = 0.0) -> Any:
    """`x` [N, H, W, C] as [N, vertical.span, horizontal.span C]: padded with `value`, or cropped, for `taps`."""
    n, height, width, channels = x.shape.as_list()
    x = tf.reshape(x, [n, height, width * channels])
    before = [vertical.before, horizontal.before * channels]
    return fit(x, before, [_behind(vertical), _behind(horizontal) * channels], value)


def taps(t: Any, a: Axis, unit: int = 1) -> list[Any]:
    """What each element of the windows along `a` sees: a.taps tensors [outer, a.outputs unit, inner].

    `t` is [outer, a.span unit, inner], already padded: elements of the axis are groups of `unit` rows.
    """
    outer, _, inner = t.shape.as_list()
    if a.taps == 1 and a.span == a.outputs:
        return [t]
    if a.step == 1:
        return [tf.slice(t, [0, i * a.dilation * unit, 0], [outer, a.outputs * unit, inner]) for i in range(a.taps)]
    t = tf.reshape(t, [outer, a.span // a.step, a.step * unit * inner])
    seen = []
    for i in range(a.taps):
        block, place = divmod(i * a.dilation, a.step)
        part = tf.slice(t, [0, block, place * unit * inner], [outer, a.outputs, unit * inner])
        seen.append(tf.reshape(part, [outer, a.outputs * unit, inner]))
    return seen


def sum_of_taps(parts: Sequence[Any], a: Axis) -> Any:
    """The reverse of `taps`: `parts`, each [outer, a.outputs, inner], summed into [outer, a.size inner]."""
    outer, _, inner = parts[0].shape.as_list()
    blocks = a.span // a.step
    places: list[list[Any]] = [[] for _ in range(a.step)]
    for i, part in enumerate(parts):
        block, place = divmod(i * a.dilation, a.step)
        flat = tf.reshape(part, [outer, a.outputs * inner])
        places[place].append(fit(flat, [block * inner], [(blocks - a.outputs - block) * inner]))
    if a.step == 1:
        t = _sum(places[0])
    else:
        unseen = tf.zeros([outer * blocks, inner])
        t = tf.concat([tf.reshape(_sum(place), [outer * blocks, inner]) if place else unseen for place in places], 1)
        t = tf.reshape(t, [outer, a.span * inner])
    return fit(t, [-a.before * inner], [-_behind(a) * inner])


def _behind(a: Axis) -> int:
    """By how much the windows reach behind the axis's last element; negative when they don't reach it."""
    return a.span - a.size - a.before


def _sum(parts: Sequence[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
