"""Each gradient of builtin ops against TensorFlow's own, op by op; no conversion involved."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

ACTIVATIONS = ["relu", "relu6", "leaky_relu", "elu", "selu", "softsign"]


def _difference(function: Callable[..., Any], ours: Callable[..., Any], *inputs: Any) -> float:
    """The worst difference between TensorFlow's gradients of `function` and our gradients of `ours`."""
    import tensorflow as tf

    from pollen.compiler.gradients import overrides

    def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*values: Any) -> Any:
            y = f(*values)
            # Unequal weights, so that no element's gradient can stand for another's.
            weights = np.sin(np.arange(np.prod(y.shape))).reshape(y.shape).astype(np.float32)
            return tf.gradients(tf.reduce_sum(y * weights), values)

        return traced

    def overridden(*values: Any) -> Any:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides()):
            return gradients(ours)(*values)

    tensors = [tf.constant(value) for value in inputs]
    expected = tf.function(gradients(function), autograph=False)(*tensors)
    found = tf.function(overridden, autograph=False)(*tensors)
    for gradient in expected:
        assert np.abs(gradient).max() > 0
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_tensorflows_gradient_also_at_its_kinks(name: str) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(200) * 4, [0.0, -0.0, 6.0, 1e-12, -1e-12]]).astype(np.float32)
    function = getattr(tf.nn, name)
    assert _difference(function, function, x) < 1e-5


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        ((1, 11), (1, 5), 1, 1),
        ((1, 11), (1, 3), 2, 1),
        ((1, 12), (1, 3), 3, 1),
        ((1, 11), (1, 1), 2, 1),
        ((1, 13), (1, 3), 1, 3),
        ((7, 8), (3, 2), 2, 1),
        ((9, 8), (3, 2), 1, 2),
    ],
)
def test_a_convolution_has_tensorflows_gradients(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int, padding: str
) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *size, 2), np.float32)
    weights = rng.standard_normal((*kernel, 2, 4), np.float32)
    # TensorFlow has no gradient of a dilated convolution on CPUs: spread the kernel by a constant matrix.
    spread = [np.zeros(((taps - 1) * dilation + 1, taps), np.float32) for taps in kernel]
    for matrix, taps in zip(spread, kernel, strict=True):
        matrix[::dilation] = np.eye(taps)

    def reference(values: Any, kernels: Any) -> Any:
        return tf.nn.conv2d(values, tf.einsum("ai,bj,ijco->abco", *spread, kernels), stride, padding)

    def ours(values: Any, kernels: Any) -> Any:
        return tf.nn.conv2d(values, kernels, stride, padding, dilations=dilation)

    assert _difference(reference, ours, x, weights) < 1e-5


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kind", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((1, 12), (1, 2), 2), ((1, 11), (1, 3), 2), ((1, 11), (1, 2), 3), ((7, 8), (3, 2), 2), ((6, 6), (2, 2), 1)],
)
def test_a_pooling_has_tensorflows_gradient_also_between_equals(
    size: tuple[int, int], window: tuple[int, int], stride: int, kind: str, padding: str
) -> None:
    import tensorflow as tf

    # Rounded, so that most windows have several maxima.
    x = np.round(np.random.default_rng(0).standard_normal((3, *size, 2)) * 2).astype(np.float32)

    def function(values: Any) -> Any:
        return getattr(tf.nn, kind)(values, window, stride, padding)

    assert _difference(function, function, x) < 1e-5
