"""Losses, sample weights and regularisers on the device are Keras's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.training.case import Case, compiled

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.05),
    lambda optimizers: optimizers.Adam(0.002),
)


def _network(outputs: int, activation: str | None = None, **last: Any) -> Callable[[Any], list[Any]]:
    return lambda layers: [
        layers.Input((12,)),
        layers.Dense(16, activation="tanh"),
        layers.Dense(outputs, activation=activation, **last),
    ]


CASES = {
    "sparse cross-entropy, logits": Case(_network(5), "sparse_categorical_crossentropy"),
    "sparse cross-entropy, probabilities": Case(_network(5, "softmax"), "sparse_categorical_crossentropy"),
    "cross-entropy, logits": Case(_network(5), "categorical_crossentropy"),
    "cross-entropy, probabilities": Case(_network(5, "softmax"), "categorical_crossentropy"),
    "cross-entropy, smoothed logits": Case(
        _network(5), lambda losses: losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ),
    "cross-entropy, smoothed probabilities": Case(
        _network(5, "softmax"), lambda losses: losses.CategoricalCrossentropy(label_smoothing=0.2)
    ),
    "binary cross-entropy, logits": Case(_network(3), "binary_crossentropy"),
    "binary cross-entropy, probabilities": Case(_network(3, "sigmoid"), "binary_crossentropy"),
    "binary cross-entropy, smoothed": Case(
        _network(1), lambda losses: losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.3)
    ),
    "MSE": Case(_network(3), "mse"),
    "MAE": Case(_network(3), "mae"),
    "Huber": Case(_network(3), "huber"),
    "Huber, delta 0.3": Case(_network(3), lambda losses: losses.Huber(delta=0.3)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loss(name: str, agrees: Any) -> None:
    agrees(name, CASES[name], OPTIMIZERS)


@pytest.mark.parametrize("name", ["sparse cross-entropy, probabilities", "binary cross-entropy, logits", "MSE", "MAE"])
def test_sample_weights(name: str, agrees: Any) -> None:
    agrees(f"{name}, weighted", replace(CASES[name], weighted=True), OPTIMIZERS)


def test_one_loss_for_each_step_of_a_sequence(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [layers.Input((6, 4)), layers.Dense(8, activation="tanh"), layers.Dense(3)]

    agrees("sequence", Case(build, "mae"), OPTIMIZERS)
    agrees("sequence of classes", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def _regularised(layers: Any) -> list[Any]:
    import keras

    return [
        layers.Input((12,)),
        layers.Dense(16, activation="tanh", kernel_regularizer="l2", bias_regularizer="l1", name="first"),
        layers.Dense(8, kernel_regularizer=keras.regularizers.L1L2(0.003, 0.02), name="second"),
        layers.PReLU(alpha_regularizer="l1"),
        layers.Dense(3),
    ]


def test_regularisers(agrees: Any) -> None:
    agrees("regularisers", Case(_regularised, "mse"), OPTIMIZERS)
    agrees("regularisers, weighted", Case(_regularised, "mse", weighted=True), OPTIMIZERS)


def test_what_is_frozen_is_not_penalised(agrees: Any) -> None:
    def freeze(model: Any) -> None:
        model.get_layer("first").trainable = False

    case = Case(_regularised, "mse", options={"frozen": ["first"]}, prepare=freeze)
    agrees("regularisers of frozen layers", case, OPTIMIZERS)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_short_batch_is_keras_short_batch_penalties_included(weighted: bool) -> None:
    import keras

    from pollen import interpreter

    model, bundle = compiled(Case(_regularised, "huber"))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5, 12), np.float32), rng.standard_normal((5, 3), np.float32)
    weight = rng.random(5, np.float32) + np.float32(0.1) if weighted else None
    step = interpreter.load(bundle, "litert").gradient(bundle.weights, x, y, sample_weight=weight)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="huber")
    loss = model.train_on_batch(x, y, sample_weight=weight)
    after = np.concatenate([np.asarray(variable).ravel() for variable in model.trainable_variables])
    assert step.loss == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(bundle.weights - step.gradient, after, rtol=0, atol=1e-6)
