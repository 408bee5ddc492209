"""Recurrent layers, and wrappers that go through time."""

import logging
from typing import Any, Final

import keras

from pollen.compiler.layers.activations import problem_with_activation
from pollen.compiler.layers.registry import Problem, can_compile, check_of, problem_with_quantised

logger = logging.getLogger(__name__)

LONG: Final = 100  # steps; the graph and the time to compile it grow with them
LONGEST: Final = 500
_LAYERS = keras.layers
_RECURRENT: Final = (_LAYERS.SimpleRNN, _LAYERS.GRU, _LAYERS.LSTM)
# They keep something from one call to the next, take numbers from outside, or go through time themselves.
_NOT_AT_EACH_STEP: Final = (
    _LAYERS.BatchNormalization,
    _LAYERS.Dropout,
    _LAYERS.Embedding,
    _LAYERS.MultiHeadAttention,
    _LAYERS.RNN,
    _LAYERS.Bidirectional,
    _LAYERS.TimeDistributed,
)


@can_compile(*_RECURRENT)
def _recurrent(layer: Any) -> Problem:
    return _problem_with_cell(layer) or _problem_with_length(layer)


@can_compile(_LAYERS.Bidirectional)
def _bidirectional(layer: Any) -> Problem:
    for part in (layer.forward_layer, layer.backward_layer):
        if type(part) not in _RECURRENT:
            return f"it holds a {type(part).__name__}; use SimpleRNN, GRU or LSTM"
        problem = _problem_with_cell(part)
        if problem is not None:
            return f"{part.name!r}: {problem}"
    if layer.forward_layer.units != layer.backward_layer.units:
        return "its two layers have different units, for which Keras gives a wrong output shape; use the same"
    if layer.merge_mode is None:
        return "merge_mode=None gives two outputs; use concat, sum, mul or ave"
    return _problem_with_length(layer)


@can_compile(_LAYERS.TimeDistributed)
def _time_distributed(layer: Any) -> Problem:
    inner = layer.layer
    check = check_of(inner)
    if check is None or isinstance(inner, _NOT_AT_EACH_STEP):
        return f"it holds a {type(inner).__name__}; use it on Dense, convolution, pooling or layers without weights"
    if getattr(inner, "data_format", "channels_last") != "channels_last":
        return f"{inner.name!r} has data_format channels_first; use channels_last"
    return check(inner)


def _problem_with_cell(layer: Any) -> Problem:
    if layer.stateful:
        return "stateful=True keeps a state between batches; use stateful=False and whole sequences"
    if layer.return_state:
        return "return_state=True gives several outputs; use return_sequences=True and its last step"
    if layer.dropout or layer.recurrent_dropout:
        return "dropout inside a cell isn't supported; put a Dropout layer before or after it"
    for attribute in ("activation", "recurrent_activation"):
        if not hasattr(layer, attribute):
            continue
        if getattr(layer, attribute) in (keras.activations.softmax, keras.activations.log_softmax):
            return f"its {attribute} mixes units, which has no gradient in a cell; use sigmoid or tanh"
        problem = problem_with_activation(layer, attribute)
        if problem is not None:
            return problem
    return problem_with_quantised(layer)


def _problem_with_length(layer: Any) -> Problem:
    for node in layer._inbound_nodes:
        length = node.input_tensors[0].shape[1]
        if length is None:
            return "its sequence length isn't fixed; give it in keras.Input((length, features))"
        if length > LONGEST:
            return f"{length} steps are more than {LONGEST}; pool or stride (Conv1D) first, or use shorter sequences"
        if length > LONG:
            logger.warning(
                "layer %r goes through %d steps, each of which is in the graph: it takes long to compile and to send",
                layer.name,
                length,
            )
    return None
