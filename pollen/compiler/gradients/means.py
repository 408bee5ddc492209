"""Gradient of a mean: global average pooling, the statistics of normalisation layers."""

import math
from typing import Any

import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of


@gradient_of("Mean")
def mean(op: tf.Operation, dy: Any) -> tuple[Any, None]:
    """dy / n for each of the n elements: divided before it is repeated, where TensorFlow divides each copy."""
    x, axes = op.inputs
    shape = x.shape.as_list()
    reduced = {int(axis) % len(shape) for axis in tf.get_static_value(axes).reshape(-1)}
    kept = [1 if index in reduced else size for index, size in enumerate(shape)]
    copies = [size if index in reduced else 1 for index, size in enumerate(shape)]
    return tf.tile(tf.reshape(dy / math.prod(copies), kept), copies), None
