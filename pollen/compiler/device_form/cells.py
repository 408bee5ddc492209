"""The steps of recurrent cells and their gradient, backpropagation through time, as few and plain ops.

Written out here and not left to automatic differentiation: whatever doesn't depend on the step after is computed for
all steps at once (the factors that gradients are multiplied by, and each weight's gradient), which leaves half as many
ops to a step. Shapes: B examples, T steps, U units. A step's values are [1, B, …], never [B, …]: a product of rank 3
becomes BATCH_MATMUL, which XNNPACK runs, one of rank 2 mostly FULLY_CONNECTED, which it doesn't for variable weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

Tensors = list[Any]


@dataclass
class Gradients:
    """For the projected input [T, B, M], the initial states, the recurrent matrices and their biases."""

    x: Any
    initial: Tensors
    matrices: Tensors
    biases: Tensors = field(default_factory=list)


class Cell(ABC):
    """A layer's steps. `forward` keeps what `backward` needs, which is to be called after it, in the same graph."""

    def __init__(self, layer: Any, matrices: Tensors, biases: Tensors) -> None:
        """`matrices`: [U, M]; `biases`: [M]."""
        self.layer = layer
        self.biases = biases
        self.matrices = [tf.expand_dims(matrix, 0) for matrix in matrices]
        self.transposed = [tf.expand_dims(tf.transpose(matrix), 0) for matrix in matrices]

    @abstractmethod
    def forward(self, x: Any, states: Tensors) -> tuple[Tensors, Tensors]:
        """The outputs of all steps and the last states, from the projected input of all steps [T, B, M]."""

    @abstractmethod
    def backward(self, d_outputs: Tensors, d_states: Tensors) -> Gradients:
        """From the gradients of what `forward` returned; None in `d_outputs` where nothing depends on an output."""


def steps_of(values: Any) -> Tensors:
    """[T, B, …] as T times [1, B, …]."""
    return list(tf.split(values, values.shape[0], 0))


def slope(activation: Callable[..., Any], before: Tensors, after: Tensors) -> Any:
    """The derivative of `activation` at all steps, [T, B, …], from what it was given and what it gave at each."""
    if activation in (keras.activations.tanh, keras.activations.sigmoid):
        y = tf.concat(after, 0)
        return 1.0 - y * y if activation is keras.activations.tanh else y * (1.0 - y)
    x = tf.concat(before, 0)
    return tf.gradients(activation(x), x, unconnected_gradients=tf.UnconnectedGradients.ZERO)[0]


def matrix_gradient(inputs: Tensors, d_products: Any) -> Any:
    """For the matrix [N, M] that multiplied the inputs [1, B, N] of all steps, from the products' [T, B, M]."""
    rows = tf.reshape(tf.concat(inputs, 0), [-1, inputs[0].shape[-1]])
    return tf.matmul(rows, tf.reshape(d_products, [-1, d_products.shape[-1]]), transpose_a=True)


class SimpleRNN(Cell):
    """Elman 1990, Finding structure in time: h' = f(x + h R)."""

    def forward(self, x: Any, states: Tensors) -> tuple[Tensors, Tensors]:
        """h' = f(x + h R)."""
        (h,) = states
        self.h, self.before, self.outputs = Tensors(), Tensors(), Tensors()
        for at in steps_of(x):
            self.h.append(h)
            self.before.append(at + tf.matmul(h, self.matrices[0]))
            h = self.layer.activation(self.before[-1])
            self.outputs.append(h)
        return self.outputs, [h]

    def backward(self, d_outputs: Tensors, d_states: Tensors) -> Gradients:
        """dh = (df/da) dh' Rᵀ, a being what f is given."""
        slopes = steps_of(slope(self.layer.activation, self.before, self.outputs))
        (dh,) = d_states
        d_before = []
        for dy, factor in zip(reversed(d_outputs), reversed(slopes), strict=True):
            d_before.append((dh if dy is None else dy + dh) * factor)
            dh = tf.matmul(d_before[-1], self.transposed[0])
        dx = tf.concat(d_before[::-1], 0)
        return Gradients(dx, [dh], [matrix_gradient(self.h, dx)])


class LSTM(Cell):
    """Hochreiter and Schmidhuber 1997, Long short-term memory, with forget gates. Columns: i, f, candidate, o."""

    def forward(self, x: Any, states: Tensors) -> tuple[Tensors, Tensors]:
        """c' = f c + i g, h' = o tanh(c'); each gate is of x + h R."""
        h, c = states
        activation, gate = self.layer.activation, self.layer.recurrent_activation
        self.h, self.c = Tensors(), [c]
        self.before: list[Tensors] = []
        self.after: list[Tensors] = []
        self.active, outputs = Tensors(), Tensors()
        for at in steps_of(x):
            self.h.append(h)
            before = list(tf.split(at + tf.matmul(h, self.matrices[0]), 4, 2))
            i, f, candidate, o = gate(before[0]), gate(before[1]), activation(before[2]), gate(before[3])
            c = f * c + i * candidate
            self.before.append(before)
            self.after.append([i, f, candidate, o])
            self.c.append(c)
            self.active.append(activation(c))
            h = o * self.active[-1]
            outputs.append(h)
        return outputs, [h, c]

    def backward(self, d_outputs: Tensors, d_states: Tensors) -> Gradients:
        """dc = f dc', with dc' = dh' o dtanh(c') + the later step's; dh through all four gates."""
        activation, gate = self.layer.activation, self.layer.recurrent_activation
        before = [list(column) for column in zip(*self.before, strict=True)]
        after = [list(column) for column in zip(*self.after, strict=True)]
        i, _, candidate, o = (tf.concat(values, 0) for values in after)
        # What dc or dh is multiplied by to give the gradient of each part before its activation, and dh to give dc.
        for_i = steps_of(candidate * slope(gate, before[0], after[0]))
        for_f = steps_of(tf.concat(self.c[:-1], 0) * slope(gate, before[1], after[1]))
        for_candidate = steps_of(i * slope(activation, before[2], after[2]))
        for_o = steps_of(tf.concat(self.active, 0) * slope(gate, before[3], after[3]))
        for_c = steps_of(o * slope(activation, self.c[1:], self.active))
        dh, dc = d_states
        d_before = Tensors()
        for t in reversed(range(len(d_outputs))):
            dh = dh if d_outputs[t] is None else d_outputs[t] + dh
            dc = dc + dh * for_c[t]
            d_before.append(tf.concat([dc * for_i[t], dc * for_f[t], dc * for_candidate[t], dh * for_o[t]], 2))
            dh = tf.matmul(d_before[-1], self.transposed[0])
            dc = dc * self.after[t][1]
        dx = tf.concat(d_before[::-1], 0)
        return Gradients(dx, [dh, dc], [matrix_gradient(self.h, dx)])


class GRU(Cell):
    """Cho et al. 2014, with the reset gate before or after the product, as the layer says.

    Matrices: [U, 2 U] for the gates z and r and [U, U] for the candidate. The bias, [U] or none, is the candidate's
    inside the reset gate; the others are part of the projected input.
    """

    def forward(self, x: Any, states: Tensors) -> tuple[Tensors, Tensors]:
        """h' = z h + (1 - z) g, written as g + z (h - g)."""
        (h,) = states
        activation, gate = self.layer.activation, self.layer.recurrent_activation
        units = self.layer.units
        x_gates, x_candidate = (steps_of(part) for part in tf.split(x, [2 * units, units], 2))
        self.h, self.inner, self.z, self.r = Tensors(), Tensors(), Tensors(), Tensors()
        self.before_gates, self.gates, self.before, self.candidates = Tensors(), Tensors(), Tensors(), Tensors()
        outputs = Tensors()
        for at_gates, at_candidate in zip(x_gates, x_candidate, strict=True):
            self.h.append(h)
            self.before_gates.append(at_gates + tf.matmul(h, self.matrices[0]))
            self.gates.append(gate(self.before_gates[-1]))
            z, r = tf.split(self.gates[-1], 2, 2)
            if self.layer.reset_after:
                inner = tf.matmul(h, self.matrices[1])
                if self.biases:
                    inner = inner + self.biases[0]
                reset = r * inner
            else:
                inner = r * h
                reset = tf.matmul(inner, self.matrices[1])
            self.z.append(z)
            self.r.append(r)
            self.inner.append(inner)
            self.before.append(at_candidate + reset)
            self.candidates.append(activation(self.before[-1]))
            h = self.candidates[-1] + z * (h - self.candidates[-1])
            outputs.append(h)
        return outputs, [h]

    def backward(self, d_outputs: Tensors, d_states: Tensors) -> Gradients:
        """dh = z dh' + what comes through the gates and the candidate g."""
        activation, gate = self.layer.activation, self.layer.recurrent_activation
        after = self.layer.reset_after
        z_slope, r_slope = tf.split(slope(gate, self.before_gates, self.gates), 2, 2)
        h, candidates = tf.concat(self.h, 0), tf.concat(self.candidates, 0)
        # What dh or d_reset is multiplied by to give the gradient of each part before its activation.
        for_z = steps_of((h - candidates) * z_slope)
        for_r = steps_of((tf.concat(self.inner, 0) if after else h) * r_slope)
        for_candidate = steps_of((1.0 - tf.concat(self.z, 0)) * slope(activation, self.before, self.candidates))
        (dh,) = d_states
        d_gates, d_candidates, d_inner = Tensors(), Tensors(), Tensors()
        for t in reversed(range(len(d_outputs))):
            dh = dh if d_outputs[t] is None else d_outputs[t] + dh
            d_candidates.append(dh * for_candidate[t])
            if after:
                d_reset = d_candidates[-1]
                d_inner.append(d_reset * self.r[t])
                through = tf.matmul(d_inner[-1], self.transposed[1])
            else:
                d_reset = tf.matmul(d_candidates[-1], self.transposed[1])
                through = d_reset * self.r[t]
            d_gates.append(tf.concat([dh * for_z[t], d_reset * for_r[t]], 2))
            dh = dh * self.z[t] + (through + tf.matmul(d_gates[-1], self.transposed[0]))
        gates, candidate = tf.concat(d_gates[::-1], 0), tf.concat(d_candidates[::-1], 0)
        dx, first = tf.concat([gates, candidate], 2), matrix_gradient(self.h, gates)
        if not after:
            return Gradients(dx, [dh], [first, matrix_gradient(self.inner, candidate)])
        inner = tf.concat(d_inner[::-1], 0)
        biases = [tf.reduce_sum(tf.reshape(inner, [-1, inner.shape[2]]), 0)] if self.biases else []
        return Gradients(dx, [dh], [first, matrix_gradient(self.h, inner)], biases)
