"""Embedding: a table of vectors, one for each integer."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile, problem_with_quantised

_LAYERS = keras.layers
# Between the model's input and an Embedding, what leaves integers as they are.
_KEEPING = (_LAYERS.Flatten, _LAYERS.Reshape, _LAYERS.Permute, _LAYERS.RepeatVector)


@can_compile(_LAYERS.Embedding)
def _embedding(layer: Any) -> Problem:
    if layer.mask_zero:
        return "masks aren't carried on the device; use mask_zero=False, and 0 has a vector like the others"
    for node in layer._inbound_nodes:
        source = _source(node.input_tensors[0])
        if not isinstance(source, _LAYERS.InputLayer):
            return f"its indices come from {source.name!r}; connect it to the model's input"
        if source.output.dtype != "int32":
            return f"its indices are {source.output.dtype}; use keras.Input(shape, dtype='int32')"
    return problem_with_quantised(layer)


def _source(tensor: Any) -> Any:
    """The layer that made `tensor`'s integers, before others only brought them into shape."""
    history = tensor._keras_history
    while isinstance(history.operation, _KEEPING):
        history = history.operation._inbound_nodes[history.node_index].input_tensors[0]._keras_history
    return history.operation


def input_below(model: Any) -> int:
    """What an integer input's values must be below: the smallest vocabulary of the Embeddings, 0 without any."""
    vocabularies = [layer.input_dim for layer in model.layers if isinstance(layer, _LAYERS.Embedding)]
    return min(vocabularies, default=0)
