"""Attention."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile, problem_with_quantised

_LAYERS = keras.layers


@can_compile(_LAYERS.MultiHeadAttention, _LAYERS.GroupQueryAttention)
def _multi_head(layer: Any) -> Problem:
    for node in layer._inbound_nodes:
        if any(len(tensor.shape) != 3 for tensor in node.input_tensors):
            return "its inputs must be [length, features]; put a Reshape before it"
    return _scores_and_dropout(layer) or problem_with_quantised(layer)


@can_compile(_LAYERS.Attention, _LAYERS.AdditiveAttention)
def _single_head(layer: Any) -> Problem:
    return _scores_and_dropout(layer)


def _scores_and_dropout(layer: Any) -> Problem:
    if layer.dropout:
        return "dropout on attention scores isn't supported; put a Dropout layer before or after it"
    for node in layer._inbound_nodes:
        if node.arguments.kwargs.get("return_attention_scores"):
            return "return_attention_scores=True gives two outputs; leave it out"
    return None
