"""Optimizers, clipping and learning-rate schedules on the device take Keras's steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.training.case import BATCH, STEPS, Case, compiled

Make = Callable[[Any], Any]

OPTIMIZERS: dict[str, list[Make]] = {
    "SGD": [
        lambda optimizers: optimizers.SGD(0.05),
        lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
        lambda optimizers: optimizers.SGD(0.02, momentum=0.8, nesterov=True),
    ],
    "Adam": [
        lambda optimizers: optimizers.Adam(0.002),
        lambda optimizers: optimizers.Adam(0.002, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
    ],
    "RMSprop": [
        lambda optimizers: optimizers.RMSprop(0.001),
        lambda optimizers: optimizers.RMSprop(0.0005, rho=0.8, momentum=0.6, epsilon=1e-5),
        lambda optimizers: optimizers.RMSprop(0.0005, centered=True, epsilon=1e-4),
        lambda optimizers: optimizers.RMSprop(0.0002, centered=True, momentum=0.5, epsilon=1e-3),
    ],
    "Adagrad": [
        lambda optimizers: optimizers.Adagrad(0.01),
        lambda optimizers: optimizers.Adagrad(0.005, initial_accumulator_value=0.01, epsilon=1e-4),
    ],
    "weight decay": [
        lambda optimizers: optimizers.AdamW(0.002, weight_decay=0.5),
        lambda optimizers: optimizers.SGD(0.05, weight_decay=0.3),
        lambda optimizers: optimizers.RMSprop(0.001, weight_decay=0.2, clipnorm=0.1),
    ],
    # The gradients' norms are about 0.3 for a tensor and 0.6 for all.
    "clipping by norm": [
        lambda optimizers: optimizers.SGD(0.1, clipnorm=0.15),
        lambda optimizers: optimizers.Adam(0.002, clipnorm=0.15),
    ],
    "clipping by global norm": [
        lambda optimizers: optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.3),
        lambda optimizers: optimizers.Adagrad(0.01, global_clipnorm=0.3),
    ],
    "clipping by value": [
        lambda optimizers: optimizers.SGD(0.1, clipvalue=0.02),
        lambda optimizers: optimizers.RMSprop(0.001, clipvalue=0.02),
    ],
    "decays": [
        lambda optimizers: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 4, 0.7)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 4, 0.7, staircase=True)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.InverseTimeDecay(0.1, 3, 0.5)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.PolynomialDecay(0.1, 12, 0.01, power=2.0)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.PolynomialDecay(0.1, 6, 0.01, cycle=True)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.PiecewiseConstantDecay([4, 9], [0.1, 0.05, 0.01])),
    ],
    "cosines": [
        lambda optimizers: optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 12, alpha=0.1)),
        lambda optimizers: optimizers.Adam(
            optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.003, warmup_steps=5)
        ),
        lambda optimizers: optimizers.SGD(optimizers.schedules.CosineDecayRestarts(0.1, 3, m_mul=0.8, alpha=0.05)),
        lambda optimizers: optimizers.SGD(optimizers.schedules.CosineDecayRestarts(0.1, 4, t_mul=1.0), momentum=0.5),
    ],
}


def _network(layers: Any) -> list[Any]:
    return [layers.Input((12,)), layers.Dense(16, activation="tanh"), layers.Dense(8), layers.Dense(3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer(name: str, agrees: Any) -> None:
    agrees(name, Case(_network, "mse"), OPTIMIZERS[name])


def test_the_proximal_term_is_part_of_the_loss_that_is_clipped() -> None:
    import keras
    import tensorflow as tf

    from edge_client.training import optimizers
    from pollen import interpreter

    mu = 0.7
    model, bundle = compiled(Case(_network, "mse", lambda made: made.SGD(0.1, momentum=0.9, global_clipnorm=0.3)))
    rng = np.random.default_rng(2)
    x = rng.standard_normal((STEPS, BATCH, 12), np.float32)
    y = rng.standard_normal((STEPS, BATCH, 3), np.float32)

    graph, w = interpreter.load(bundle, "litert"), bundle.weights.copy()
    stepper = optimizers.make(bundle.manifest.optimizer, bundle.manifest)
    for index in range(STEPS):
        step = graph.gradient(w, x[index], y[index])
        optimizers.add_proximal(step.gradient, w, bundle.weights, mu)
        stepper.step(w, step.gradient)

    variables = model.trainable_variables
    first = [tf.constant(variable) for variable in variables]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.3)
    for index in range(STEPS):
        with tf.GradientTape() as tape:
            distance = tf.add_n([tf.reduce_sum((v - v0) ** 2) for v, v0 in zip(variables, first, strict=True)])
            loss = tf.reduce_mean((model(x[index], training=True) - y[index]) ** 2) + mu / 2 * distance
        optimizer.apply(tape.gradient(loss, variables), variables)
    expected = np.concatenate([np.asarray(variable).ravel() for variable in variables])
    assert np.abs(expected - bundle.weights).max() > 1e-2
    np.testing.assert_allclose(w, expected, rtol=0, atol=1e-5)
