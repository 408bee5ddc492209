"""The device's losses in numpy are Keras's."""

from typing import Any

import numpy as np
import pytest

from pollen import scoring
from pollen.bundle import Loss

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((40, 4), np.float32) * np.float32(2)
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype(np.float32)
COINS = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
CLASSES = RNG.integers(0, 4, 40, np.int32)
ONE_HOT = np.eye(4, dtype=np.float32)[CLASSES]
SOFT = RNG.dirichlet(np.ones(4), 40).astype(np.float32)
REALS = RNG.standard_normal((40, 4), np.float32)


@pytest.mark.parametrize(
    ("loss", "make", "output", "y"),
    [
        (Loss("mse", False), lambda losses: losses.MeanSquaredError(), LOGITS, REALS),
        (Loss("mae", False), lambda losses: losses.MeanAbsoluteError(), LOGITS, REALS),
        (Loss("huber", False), lambda losses: losses.Huber(), LOGITS, REALS),
        (Loss("huber", False, delta=2.5), lambda losses: losses.Huber(2.5), LOGITS, REALS),
        (
            Loss("sparse_categorical_crossentropy", True),
            lambda losses: losses.SparseCategoricalCrossentropy(from_logits=True),
            LOGITS,
            CLASSES,
        ),
        (
            Loss("categorical_crossentropy", False),
            lambda losses: losses.CategoricalCrossentropy(),
            PROBABILITIES,
            SOFT,
        ),
        (
            Loss("categorical_crossentropy", True, label_smoothing=0.2),
            lambda losses: losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
            LOGITS,
            ONE_HOT,
        ),
        (
            Loss("binary_crossentropy", True, label_smoothing=0.1),
            lambda losses: losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1),
            LOGITS,
            ONE_HOT,
        ),
        (Loss("binary_crossentropy", False), lambda losses: losses.BinaryCrossentropy(), COINS, ONE_HOT),
    ],
)
def test_the_mean_loss_is_keras_loss(loss: Loss, make: Any, output: Any, y: Any) -> None:
    import keras

    assert scoring.mean_loss(loss, output, y) == pytest.approx(float(make(keras.losses)(y, output)), rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_a_regressions_error_is_the_mean_distance(name: str) -> None:
    loss = Loss(name, from_logits=False)
    assert not scoring.is_classification(loss)
    output, y = np.array([[1, 2], [0, 0]], np.float32), np.array([[0, 4], [3, 0]], np.float32)
    assert scoring.errors(loss, output, y).tolist() == [1.5, 1.5]
