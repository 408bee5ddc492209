"""Activations on the device are Keras's, in training and far from zero."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import case as cases
from tests.training.case import BATCH, STEPS, Case

NAMES = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "mish", "silu", "tanh", "sigmoid"),
    *("log_sigmoid", "softplus", "softsign", "softmax", "log_softmax", "exponential", "squareplus", "hard_sigmoid"),
    *("hard_silu", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "sparse_plus", "sparse_sigmoid"),
)


# Their outputs are so large that Keras itself diverges from the others' inputs and rate.
STEEP = ("exponential", "log_softmax")
EXTREMES = (-1e4, -1000, -200, -100, -89, -50, -20, -8, -1, -0.1, 0, 0.1, 1, 8, 20, 50, 89, 100, 1000, 1e4)


def test_the_list_is_whole() -> None:
    from pollen.compiler.layers import ACTIVATIONS

    assert set(NAMES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_an_activation(name: str, agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((12,)),
            layers.Dense(16, activation=name),
            layers.Dense(8),
            layers.Activation(name),
            layers.Dense(3),
        ]

    def small(rng: np.random.Generator) -> Any:
        return rng.standard_normal((STEPS, BATCH, 12), np.float32) * np.float32(0.2)

    if name in STEEP:
        agrees(name, Case(build, "mse", lambda optimizers: optimizers.SGD(0.001), x=small))
    else:
        agrees(name, Case(build, "mse", lambda optimizers: optimizers.SGD(0.02)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ReLU", {"max_value": 0.7}),
        ("ReLU", {"threshold": 0.2}),
        ("ReLU", {"negative_slope": 0.3, "max_value": 0.7, "threshold": 0.2}),
        ("ReLU", {"negative_slope": 0.3, "max_value": 6}),
        ("LeakyReLU", {"negative_slope": 0.1}),
        ("PReLU", {}),
        ("PReLU", {"alpha_initializer": "ones", "shared_axes": [1]}),
        ("ELU", {"alpha": 0.5}),
        ("Softmax", {}),
    ],
)
def test_an_activation_as_a_layer(kind: str, settings: dict[str, Any], agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((6, 12)),
            layers.Dense(16),
            getattr(layers, kind)(**settings),
            layers.Flatten(),
            layers.Dense(3),
        ]

    agrees(f"{kind} {settings or ''}", Case(build, "mse", lambda optimizers: optimizers.SGD(0.02)))


def _every_activation(layers: Any) -> Any:
    """Each activation behind a Dense layer of its own, which multiplies by 1, -1 and 0.5: its bias gets the slope."""
    import keras

    x = keras.Input((1,))
    scales = keras.initializers.Constant([[1.0, -1.0, 0.5]])
    names = [name for name in NAMES if name != "exponential"]  # which overflows, in Keras too
    outputs = [
        layers.Activation(name)(layers.Dense(3, kernel_initializer=scales, name=f"to_{name}")(x)) for name in names
    ]
    return keras.Model(x, layers.Concatenate()(outputs))


def test_values_and_slopes_are_right_far_from_zero_and_at_kinks(devices: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    model, bundle = cases.compiled(Case(_every_activation, "mae", lambda optimizers: optimizers.SGD(1e-44)))
    # One value fills a batch, so that each step's gradient is that of one value.
    x = np.repeat(np.array(EXTREMES, np.float32)[:, np.newaxis, np.newaxis], BATCH, axis=1)
    mixed = np.concatenate([x[:6, 0], x[8:15, 0], x[-3:, 0]])
    y = np.full((*x.shape[:2], *bundle.manifest.label_shape), 3e38, np.float32)
    slopes = []
    for values in x:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(model(values) - y[0]))
        gradient = tape.gradient(loss, model.trainable_variables)
        slopes.append(np.concatenate([v.numpy().ravel() for v in gradient[1::2]]) * -y[0].shape[-1])
    places = np.concatenate([np.full(t.size, t.name.endswith("bias")) for t in bundle.manifest.weights])

    for name, batches in (("slopes", x), ("values", np.stack([mixed] * len(x)))):
        (tmp_path / name).mkdir()
        made = Case(_every_activation, x=lambda _, batches=batches: batches, y=lambda _: y)  # type: ignore[misc]
        cases.write(made, bundle, tmp_path / name)
    for device in devices:
        found = device.train(tmp_path / "slopes")["gradients"][:, places] * -y[0].shape[-1]
        np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=2e-6)
        predicted, expected = device.train(tmp_path / "values")["prediction"], np.asarray(model(mixed))
        # squareplus takes the difference of two numbers of its input's size.
        assert (np.abs(predicted - expected) <= 1e-5 + 1e-7 * np.abs(mixed)).all()
