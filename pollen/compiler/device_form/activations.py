"""Activation functions in forms that convert to builtin ops and stay right for any input."""

from collections.abc import Callable
from typing import Any, Final

import keras
import tensorflow as tf

# Of the rational approximation of erf on [-4, 4] that Eigen and XLA have used, x P(x²) / Q(x²), highest powers first:
# off by at most 4.2e-7 and 7 units in the last place, where TensorFlow's erf is by 3.6e-7 and 6.
_ERF_P: Final = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q: Final = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_ROOT_HALF: Final = 0.7071067811865476
_ROOT_2_PI: Final = 2.5066282746310002


@tf.custom_gradient
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), for any x: converted as it stands, Keras's overflows above 88 on the device."""

    def gradient(dy: Any) -> Any:
        return dy * tf.sigmoid(x)

    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x))), gradient


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + exp(-x)))."""
    return -softplus(-x)


def mish(x: Any) -> Any:
    """x tanh(softplus(x)) (Misra 2019)."""
    return x * tf.tanh(softplus(x))


@tf.custom_gradient
def gelu(x: Any) -> Any:
    """x Φ(x), Φ being the normal distribution's (Hendrycks & Gimpel 2016); erf is no builtin op."""
    phi = 0.5 + 0.5 * _erf(x * _ROOT_HALF)

    def gradient(dy: Any) -> Any:
        return dy * (phi + x * (tf.exp(-0.5 * x * x) * (1.0 / _ROOT_2_PI)))

    return x * phi, gradient


def _erf(x: Any) -> Any:
    x = tf.clip_by_value(x, -4.0, 4.0)
    square = x * x
    return tf.clip_by_value(x * _polynomial(_ERF_P, square) / _polynomial(_ERF_Q, square), -1.0, 1.0)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """By Horner's rule."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


_REPLACEMENTS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    keras.activations.softplus: softplus,
    keras.activations.log_sigmoid: log_sigmoid,
    keras.activations.mish: mish,
    keras.activations.gelu: gelu,
}


def replace(layer: Any) -> None:
    """Let `layer` use the forms above for the activation functions that have one."""
    if isinstance(layer, keras.layers.RNN):
        return  # only shows its cell's
    for attribute in ("activation", "recurrent_activation"):
        if hasattr(layer, attribute):
            function = getattr(layer, attribute)
            setattr(layer, attribute, _REPLACEMENTS.get(function, function))
