"""The gradient of slices with steps, as in Cropping layers or x[:, ::2]."""

from typing import Any

import numpy as np
import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of, refuse
from pollen.compiler.gradients.windows import axis, spread


@gradient_of("StridedSlice")
def strided_slice(op: tf.Operation, dy: Any) -> tuple[Any, None, None, None]:
    """dy where the slice was taken, zeros elsewhere."""
    x = op.inputs[0]
    shape = x.shape.as_list()
    taken = _ranges(op, shape)
    g = tf.reshape(dy, [len(r) for r in taken])
    for along, r in enumerate(taken):
        if r.step > 1:
            g = _spread(g, along, r.step)
    margins = [[r.start, size - r.start - length] for r, size, length in zip(taken, shape, g.shape, strict=True)]
    return (tf.pad(g, margins) if np.any(margins) else g), None, None, None


def _ranges(op: tf.Operation, shape: list[int]) -> list[range]:
    """The elements taken along each axis of x."""
    bounds = [tf.get_static_value(tensor) for tensor in op.inputs[1:4]]
    if any(values is None for values in bounds) or None in shape:
        refuse(op, "its bounds or its input's lengths aren't fixed; use constants")

    def has(mask: str, index: int) -> bool:
        return bool(op.get_attr(f"{mask}_mask") >> index & 1)

    taken: list[range] = []
    for index, (begin, end, step) in enumerate(zip(*(values.tolist() for values in bounds), strict=True)):
        if has("new_axis", index):
            continue
        if has("ellipsis", index):
            later = sum(not has("new_axis", i) for i in range(index + 1, len(bounds[0])))
            taken += [range(size) for size in shape[len(taken) : len(shape) - later]]
            continue
        size = shape[len(taken)]
        if has("shrink_axis", index):
            taken.append(range(begin % size, begin % size + 1))
            continue
        first, last = None if has("begin", index) else begin, None if has("end", index) else end
        taken.append(range(*slice(first, last, step).indices(size)))
        if step < 0:
            refuse(op, "its step is negative; use a positive one")
    return taken + [range(size) for size in shape[len(taken) :]]


def _spread(t: Any, along: int, step: int) -> Any:
    """`t` with step - 1 zeros between neighbours along one axis."""
    shape = t.shape.as_list()
    # The axes before and behind are folded, so that every op stays within the dimensions all interpreters take.
    outer, length, inner = int(np.prod(shape[:along])), shape[along], int(np.prod(shape[along + 1 :]))
    shape[along] = (length - 1) * step + 1
    rows, columns = axis(shape[along], 1, step, 1, "VALID"), axis(1, 1, 1, 1, "VALID")
    return tf.reshape(spread(tf.reshape(t, [outer, length, 1, inner]), rows, columns), shape)
