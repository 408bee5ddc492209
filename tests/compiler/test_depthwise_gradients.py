"""The gradients of depthwise and transposed convolution, slices and repetition: each as computed by the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def _on_the_device(function: Callable[..., Any], *inputs: Any) -> Any:
    """What ai-edge-litert computes for a function of tensors, converted to builtin ops."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    specs = [tf.TensorSpec(value.shape, tf.float32) for value in inputs]
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    interpreter = Interpreter(model_content=tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _difference(reference: Callable[..., Any], ours: Callable[..., Any], *inputs: Any) -> float:
    """The worst difference between TensorFlow's gradients of `reference` and the device's of `ours`."""
    import tensorflow as tf

    from pollen.compiler.gradients import overrides

    def gradients(function: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        y = function(*values)
        # Unequal weights, so that no element's gradient can stand for another's.
        weights = np.sin(np.arange(np.prod(y.shape))).reshape(y.shape).astype(np.float32)
        found = tf.gradients(tf.reduce_sum(y * weights), values)
        return tf.concat([tf.reshape(gradient, [-1]) for gradient in found], 0)

    def overridden(*values: Any) -> Any:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides()):
            return gradients(ours, values)

    expected = tf.function(lambda *values: gradients(reference, values), autograph=False)(*map(tf.constant, inputs))
    assert np.abs(expected).max() > 0
    return float(np.abs(_on_the_device(overridden, *inputs) - expected).max() / np.abs(expected).max())


def _values(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(
    ("size", "kernel", "steps"),
    [
        ((1, 11), (1, 5), (1, 1)),
        ((1, 11), (1, 3), (2, 1)),
        ((1, 12), (1, 2), (3, 1)),
        ((1, 13), (1, 3), (1, 3)),
        ((7, 8), (1, 1), (1, 1)),
        ((7, 8), (3, 2), (2, 1)),
        ((8, 7), (4, 5), (3, 1)),
        ((9, 8), (3, 2), (1, 2)),
    ],
)
def test_a_depthwise_convolution_has_tensorflows_gradients(
    size: tuple[int, int], kernel: tuple[int, int], steps: tuple[int, int], multiplier: int, padding: str
) -> None:
    import tensorflow as tf

    stride, dilation = steps

    def reference(x: Any, kernels: Any) -> Any:
        return tf.nn.depthwise_conv2d(x, kernels, [1, stride, stride, 1], padding, dilations=[dilation, dilation])

    def in_one_op(x: Any, kernels: Any) -> Any:
        return tf.raw_ops.DepthwiseConv2dNative(
            input=x,
            filter=kernels,
            strides=[1, stride, stride, 1],
            padding=padding,
            dilations=[1, dilation, dilation, 1],
        )

    inputs = _values(3, *size, 2), _values(*kernel, 2, multiplier)
    for ours in (reference, in_one_op):
        assert _difference(reference, ours, *inputs) < 1e-5


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("kernel", "strides"), [((3, 2), (1, 1)), ((3, 3), (2, 3)), ((1, 4), (1, 2))])
def test_a_transposed_convolution_has_tensorflows_gradients(
    kernel: tuple[int, int], strides: tuple[int, int], padding: str
) -> None:
    import tensorflow as tf

    size = (4, 5)
    spare = [k if padding == "VALID" else s for k, s in zip(kernel, strides, strict=True)]
    length = [(n - 1) * s + more for n, s, more in zip(size, strides, spare, strict=True)]

    def function(x: Any, kernels: Any) -> Any:
        return tf.nn.conv2d_transpose(x, kernels, [3, *length, 4], strides, padding)

    assert _difference(function, function, _values(3, *size, 2), _values(*kernel, 4, 2)) < 1e-5


@pytest.mark.parametrize(
    "take",
    [
        lambda x: x[:, 1:-1],
        lambda x: x[:, ::2, 1::3],
        lambda x: x[1, ..., -1],
        lambda x: x[..., None, 2:6:2],
        lambda x: x[-1:, 2, None, 1:],
    ],
    ids=["crop", "steps", "elements", "new axis", "all"],
)
def test_a_slice_has_tensorflows_gradient(take: Callable[[Any], Any]) -> None:
    assert _difference(take, take, _values(3, 5, 8, 7)) < 1e-6


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_repetition_has_tensorflows_gradient(axis: int) -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        return tf.repeat(x, 3, axis=axis)

    assert _difference(function, function, _values(2, 3, 4, 5)) < 1e-6


def test_a_tiling_along_all_axes_has_tensorflows_gradient() -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        return tf.tile(x, [2, 3, 1, 4])

    assert _difference(function, function, _values(2, 3, 4, 5)) < 1e-6
