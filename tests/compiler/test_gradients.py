"""Each gradient of builtin ops against TensorFlow's own, op by op; no conversion involved."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from pollen.errors import CompileError

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


def _spread_out(kernel: Any, dilation: tuple[int, int]) -> Any:
    """`kernel` with dilation - 1 zeros between neighbours, since TensorFlow can't differentiate dilation on CPUs."""
    import tensorflow as tf

    matrices = []
    for taps, step in zip(kernel.shape[:2], dilation, strict=True):
        matrix = np.zeros(((taps - 1) * step + 1, taps), np.float32)
        matrix[::step] = np.eye(taps)
        matrices.append(matrix)
    return tf.einsum("ai,bj,ijco->abco", *matrices, kernel)


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

    def reference(values: Any, kernels: Any) -> Any:
        return tf.nn.conv2d(values, _spread_out(kernels, (dilation, dilation)), stride, padding)

    def ours(values: Any, kernels: Any) -> Any:
        return tf.nn.conv2d(values, kernels, stride, padding, dilations=dilation)

    assert _difference(reference, ours, x, weights) < 1e-5


CONVOLUTIONS_1D = [
    ((1, size), (1, kernel), (1, stride), (1, dilation))
    for size, kernel, stride, dilation in product((13, 14), (1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 3))
]
CONVOLUTIONS_2D = [
    ((13, 14), kernel, stride, dilation)
    for kernel, stride, dilation in [
        *product([(1, 1), (3, 3), (2, 5), (5, 4)], [(1, 1), (2, 2), (3, 1), (2, 3)], [(1, 1)]),
        *product([(3, 3), (2, 4), (1, 3)], [(1, 1), (2, 1)], [(2, 2), (1, 3), (3, 2)]),
    ]
]


@pytest.mark.parametrize("channels", [1, 3, 5], ids="channels{}".format)
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL"])
@pytest.mark.parametrize("geometries", [CONVOLUTIONS_1D, CONVOLUTIONS_2D], ids=["1d", "2d"])
def test_a_convolution_as_a_product_has_tensorflows_result_and_gradients(
    geometries: list[Any], padding: str, channels: int
) -> None:
    import tensorflow as tf

    from pollen.compiler.gradients.convolution import convolve

    rng = np.random.default_rng(0)
    for size, kernel, stride, dilation in geometries:
        x = tf.constant(rng.standard_normal((2, *size, channels), np.float32))
        weights = tf.constant(rng.standard_normal((*kernel, channels, 4), np.float32))
        before = [(taps - 1) * step for taps, step in zip(kernel, dilation, strict=True)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, weights])
            causal = padding == "CAUSAL"
            seen = tf.pad(x, [[0, 0], [before[0], 0], [before[1], 0], [0, 0]]) if causal else x
            spread = _spread_out(weights, dilation)
            expected = tf.nn.conv2d(seen, spread, [1, *stride, 1], "VALID" if causal else padding)
            found = convolve(x, weights, stride, dilation, padding)
        dy = tf.constant(rng.standard_normal(expected.shape, np.float32))
        pairs = zip(
            [expected, *tape.gradient(expected, [x, weights], dy)],
            [found, *tape.gradient(found, [x, weights], dy)],
            strict=True,
        )
        for a, b in pairs:
            worst = float(np.abs(a - b).max() / np.abs(a).max())
            assert worst < 2e-6, f"size {size}, kernel {kernel}, stride {stride}, dilation {dilation}"


def test_a_convolution_in_groups_as_a_product_has_tensorflows_gradients() -> None:
    import tensorflow as tf

    from pollen.compiler.gradients.convolution import convolve

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 6), np.float32)
    weights = rng.standard_normal((3, 3, 2, 9), np.float32)

    def reference(values: Any, kernels: Any) -> Any:
        parts = zip(tf.split(values, 3, 3), tf.split(kernels, 3, 3), strict=True)
        return tf.concat([tf.nn.conv2d(part, kernel, 2, "SAME") for part, kernel in parts], 3)

    def ours(values: Any, kernels: Any) -> Any:
        return convolve(values, kernels, (2, 2), (1, 1), "SAME")

    assert _difference(reference, ours, x, weights) < 1e-5


POOLS = [
    *(((1, size), (1, window), stride) for size, window, stride in product((11, 12), (1, 2, 3, 5), (1, 2, 3))),
    *(((7, 8), window, stride) for window, stride in product([(3, 2), (2, 2), (1, 3), (4, 5)], (1, 2, 3))),
    ((6, 5), (6, 5), 1),
    ((6, 5), (6, 5), 6),
]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kind", ["max_pool2d", "avg_pool2d"])
def test_a_pooling_has_tensorflows_gradient_also_between_equals(kind: str, padding: str) -> None:
    import tensorflow as tf

    # Rounded, so that most windows have several maxima.
    rng = np.random.default_rng(0)
    inputs = [np.round(rng.standard_normal((3, *size, 2)) * 2).astype(np.float32) for size, _, _ in POOLS]

    def function(*values: Any) -> Any:
        pooled = [
            tf.reshape(getattr(tf.nn, kind)(x, window, stride, padding), [-1])
            for x, (_, window, stride) in zip(values, POOLS, strict=True)
        ]
        return tf.concat(pooled, 0)

    assert _difference(function, function, *inputs) < 1e-5


# What is differentiated, given TensorFlow and an input [4, 4, 4, 4], and what the error must say.
REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "Conv2D": (lambda tf, x: tf.nn.conv2d(x, np.ones((2, 2, 4, 3)), 1, "VALID", data_format="NCHW"), "channels_last"),
    "Conv2D in groups": (lambda tf, x: tf.nn.conv2d(x, np.ones((2, 2, 2, 4)), 1, "VALID"), "in groups"),
    "DepthwiseConv2dNative": (
        lambda tf, x: tf.nn.depthwise_conv2d(
            x, np.ones((2, 2, 4, 1), np.float32), [1] * 4, "VALID", data_format="NCHW"
        ),
        "channels_last",
    ),
    "MaxPool": (lambda tf, x: tf.nn.max_pool2d(x, 2, 2, "VALID", data_format="NCHW"), "channels_last"),
    "AvgPool": (lambda tf, x: tf.nn.avg_pool2d(x, 2, 2, "VALID", data_format="NCHW"), "channels_last"),
    "GatherV2": (lambda tf, x: tf.gather(x, [0, 2], axis=1), "another axis than the first"),
    "StridedSlice": (lambda _, x: x[::-1], "its step is negative"),
    "StridedSlice up to a value": (lambda tf, x: x[: tf.cast(x[0, 0, 0, 0], tf.int32)], "aren't fixed; use constants"),
    "Tile": (lambda tf, x: tf.tile(x, [1, 1, 1, tf.cast(x[0, 0, 0, 0], tf.int32)]), "aren't fixed; use constants"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_op_that_its_gradient_is_not_written_for_is_named(case: str) -> None:
    import tensorflow as tf

    from pollen.compiler.gradients import overrides

    function, message = REFUSED[case]

    def traced(x: Any) -> Any:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides()):
            return tf.gradients(tf.reduce_sum(function(tf, x)), x)

    op = case.partition(" ")[0]
    with pytest.raises(CompileError, match=rf"op '\w+.*' \({op}\) can't be compiled: .*{message}"):
        tf.function(traced, autograph=False).get_concrete_function(tf.TensorSpec((4, 4, 4, 4)))
