"""The gradient of repetition, as in UpSampling and RepeatVector layers."""

from typing import Any

import numpy as np
import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of, refuse


@gradient_of("Tile")
def tile(op: tf.Operation, dy: Any) -> tuple[Any, None]:
    """The sum of dy over the copies, one axis at a time: XNNPACK refuses the sum over several of many axes."""
    shape, result = op.inputs[0].shape.as_list(), op.outputs[0].shape.as_list()
    if None in shape + result:
        refuse(op, "its input's lengths or how often they are repeated aren't fixed; use constants")
    for along, (size, length) in enumerate(zip(shape, result, strict=True)):
        if length > size:
            outer, inner = int(np.prod(shape[:along])), size * int(np.prod(result[along + 1 :]))
            dy = tf.reduce_sum(tf.reshape(dy, [outer, length // size, inner]), 1)
    return tf.reshape(dy, shape), None
