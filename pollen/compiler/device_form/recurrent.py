"""Recurrent layers without a loop: their steps written out, as the device's interpreters need them.

Keras can unroll too. Measured against that, the same GRU takes half the ops and two thirds of the time: the input's
projection is one product for all steps, and so is each weight's gradient (see `cells`).
"""

from collections.abc import Callable
from typing import Any, Final

import keras
import tensorflow as tf

from pollen.compiler.device_form.cells import GRU, LSTM, Cell, SimpleRNN, Tensors, steps_of

_CELLS: Final[dict[type, type[Cell]]] = {
    keras.layers.SimpleRNN: SimpleRNN,
    keras.layers.LSTM: LSTM,
    keras.layers.GRU: GRU,
}


def unroll(layer: Any) -> None:
    """Let `layer`, a copy made for the device, and the layers within it go through time without a loop."""
    for part in layer._flatten_layers():
        if type(part) in _CELLS:
            part.inner_loop = _inner_loop(part)
        elif type(part) is keras.layers.TimeDistributed:
            part.call = _all_steps_at_once(part)


def _all_steps_at_once(wrapper: Any) -> Callable[..., Any]:
    """What stands in for TimeDistributed's `call`: its layer sees the steps as more examples."""

    def call(inputs: Any, training: bool = False, **_: Any) -> Any:
        batch, steps, *shape = inputs.shape
        named = {"training": training} if wrapper.layer._call_has_training_arg else {}
        outputs = wrapper.layer.call(tf.reshape(inputs, [batch * steps, *shape]), **named)
        return tf.reshape(outputs, [batch, steps, *outputs.shape[1:]])

    return call


def _inner_loop(layer: Any) -> Callable[..., tuple[Any, Any, Tensors]]:
    """What stands in for the method of this name, by which Keras's recurrent layers run their loop."""

    def inner_loop(sequences: Any, initial_state: Any, **_: Any) -> tuple[Any, Any, Tensors]:
        batch, steps, features = sequences.shape
        kernel, bias, matrices, biases = _weights(layer)
        if layer.go_backwards:
            sequences = tf.reverse(sequences, [1])
        # Rank 3: see `cells`.
        rows = tf.reshape(tf.transpose(sequences, [1, 0, 2]), [1, steps * batch, features])
        projected = tf.matmul(rows, tf.expand_dims(kernel, 0))
        if bias is not None:
            projected += bias
        projected = tf.reshape(projected, [steps, batch, kernel.shape[1]])
        given = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
        initial = [tf.expand_dims(state, 0) for state in given]
        outputs, states = _recurrence(layer, projected, initial, matrices, biases)
        last = [tf.squeeze(state, 0) for state in states]
        return last[0], tf.transpose(outputs[0], [1, 0, 2]) if outputs else last[0], last

    return inner_loop


def _weights(layer: Any) -> tuple[Any, Any, Tensors, Tensors]:
    """The kernel, what is added to its product (None for nothing), and the cell's matrices and biases."""
    cell = layer.cell
    kernel, recurrent = tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)
    bias = tf.convert_to_tensor(cell.bias) if cell.use_bias else None
    if type(layer) is not keras.layers.GRU:
        return kernel, bias, [recurrent], []
    gates = 2 * cell.units
    matrices = list(tf.split(recurrent, [gates, cell.units], 1))
    if bias is None or not cell.reset_after:
        return kernel, bias, matrices, []
    of_input, of_product = (tf.reshape(part, [gates + cell.units]) for part in tf.split(bias, 2, 0))
    of_gates, of_candidate = tf.split(of_product, [gates, cell.units], 0)
    # The gates' two biases are only ever added to each other.
    return kernel, of_input + tf.pad(of_gates, [[0, cell.units]]), matrices, [of_candidate]


def _recurrence(
    layer: Any, projected: Any, initial: Tensors, matrices: Tensors, biases: Tensors
) -> tuple[Tensors, Tensors]:
    """The outputs [T, B, U], none where the layer gives only the last, and the last states [1, B, U]."""

    @tf.custom_gradient
    def run(projected: Any, *rest: Any) -> Any:
        first, last = len(initial), len(initial) + len(matrices)
        cell = _CELLS[type(layer)](layer, list(rest[first:last]), list(rest[last:]))
        outputs, states = cell.forward(projected, list(rest[:first]))

        def gradient(*dys: Any) -> Tensors:
            count = len(states)
            d_outputs = steps_of(dys[0]) if layer.return_sequences else [None] * projected.shape[0]
            found = cell.backward(d_outputs, list(dys[-count:]))
            return [found.x, *found.initial, *found.matrices, *found.biases]

        return ([tf.concat(outputs, 0)] if layer.return_sequences else []) + states, gradient

    results = run(projected, *initial, *matrices, *biases)
    return results[: -len(initial)], results[-len(initial) :]
