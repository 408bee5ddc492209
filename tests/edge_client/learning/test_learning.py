"""Scores, buffer, training and error feedback, against plain numpy."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.learning.learner import Learner
from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.learning.standardise import Standardiser
from edge_client.network.error_feedback import compress
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner as LearnerSettings
from edge_client.settings import Training
from edge_client.training import trainer
from pollen import encoding, scoring
from pollen.bundle import Bundle
from pollen.errors import MessageError
from pollen.interpreter import load
from pollen.manifest import Loss
from tests.edge_client.learning.test_windowing import manifest

Bundles = Callable[[str], Bundle]


@pytest.mark.parametrize("from_logits", [True, False])
def test_losses_and_errors_by_hand(from_logits: bool) -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    output = logits if from_logits else probabilities.astype(np.float32)
    loss = Loss("sparse_categorical_crossentropy", from_logits)
    y = np.array([0, 2], np.int32)
    expected = -np.log(probabilities[[0, 1], [0, 2]]).mean()
    assert scoring.mean_loss(loss, output, y) == pytest.approx(expected, rel=1e-5)
    assert scoring.errors(loss, output, y).tolist() == [0.0, 1.0]
    one_hot = np.eye(3, dtype=np.float32)[y]
    assert scoring.mean_loss(Loss("categorical_crossentropy", from_logits), output, one_hot) == pytest.approx(
        expected, rel=1e-5
    )
    binary = Loss("binary_crossentropy", from_logits)
    p = np.array([[0.8], [0.3]], np.float32)
    score = np.log(p / (1 - p)) if from_logits else p
    truth = np.array([[1.0], [1.0]], np.float32)
    assert scoring.mean_loss(binary, score, truth) == pytest.approx(-np.log(p).mean(), rel=1e-4)
    assert scoring.errors(binary, score, truth).tolist() == [0.0, 1.0]
    mse = Loss("mse", from_logits=False)
    assert scoring.mean_loss(mse, np.array([[1, 2]], np.float32), np.array([[0, 4]], np.float32)) == 2.5
    assert scoring.errors(mse, np.array([[1, 2]], np.float32), np.array([[0, 4]], np.float32)).tolist() == [1.5]


def test_the_buffer_is_a_ring_of_fixed_size() -> None:
    buffer = ReplayBuffer(manifest((2,), (1,), (1,)), 5)
    for value in range(12):
        buffer.add(np.full(2, value, np.float32), np.array([value], np.float32))
    assert (len(buffer), buffer.total) == (5, 12)
    slots = np.arange(5)
    x, y = buffer.take(slots)
    assert sorted(y[:, 0].tolist()) == [7, 8, 9, 10, 11]
    assert buffer.serials(slots).tolist() == y[:, 0].tolist()
    buffer.add(np.zeros(2, np.float32), np.zeros(1, np.float32))
    assert sorted(y[:, 0].tolist()) == [7, 8, 9, 10, 11], "what was taken is a copy"
    assert x.shape == (5, 2)


def sine(count: int, *, gap_at: int = -1) -> list[Sample]:
    values = np.stack([np.sin(np.arange(count) / 3), np.cos(np.arange(count) / 3)], axis=1).astype(np.float32)
    return [
        Sample(index + (0 <= gap_at <= index), float(index), 0.0, values[index : index + 1], None)
        for index in range(count)
    ]


def learner(bundle: Bundle, **settings: Any) -> Learner:
    return Learner(load(bundle), LearnerSettings(**settings), 2, Standardiser(2, 1000))


def training(bundle: Bundle, plan: trainer.Plan, examples: int) -> trainer.TrainingRun:
    one = learner(bundle, standardise=False)
    one.observe(sine(examples + 4), bundle.weights, bundle.state)
    return trainer.TrainingRun(
        load(bundle),
        one.buffer,
        start=(bundle.weights, bundle.state),
        base=(bundle.weights, bundle.state),
        steps_done=0,
        plan=plan,
        chance=random.Random(1),
        clock=SystemClock(),
    )


def run(bundle: Bundle, plan: trainer.Plan, examples: int = 50) -> trainer.Trained:
    job = training(bundle, plan, examples)
    while not job.advance(0.001):
        assert job.result is None
    assert job.result is not None
    return job.result


def test_training_makes_the_passes_and_steps_it_was_told(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    trained = run(bundle, trainer.Plan(epochs=3, max_steps=1000, proximal_mu=0.0, learning_rate=None))
    assert trained.steps == 3 * 7  # 50 examples in batches of 8
    assert trained.serials.tolist() == list(range(50))
    assert trained.loss_after < trained.loss_before
    short = run(bundle, trainer.Plan(epochs=3, max_steps=4, proximal_mu=0.0, learning_rate=None))
    assert (short.steps, len(short.serials)) == (4, 32)


def test_training_gets_on_when_a_slice_is_shorter_than_a_step(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    plan = trainer.Plan(epochs=1, max_steps=5, proximal_mu=0.0, learning_rate=None)
    job = training(bundle, plan, examples=50)
    assert [job.advance(0.0) for _ in range(6)] == [False] * 5 + [True]


def test_the_proximal_term_keeps_the_weights_near_the_base(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    free = run(bundle, trainer.Plan(epochs=20, max_steps=1000, proximal_mu=0.0, learning_rate=None))
    held = run(bundle, trainer.Plan(epochs=20, max_steps=1000, proximal_mu=10.0, learning_rate=None))
    assert np.linalg.norm(held.weights - bundle.weights) < 0.5 * np.linalg.norm(free.weights - bundle.weights)


def test_training_that_diverges_says_so(bundles: Bundles) -> None:
    with pytest.raises(trainer.TrainingDivergedError, match="lower the learning rate"):
        run(bundles("forecast"), trainer.Plan(epochs=100, max_steps=1000, proximal_mu=0.0, learning_rate=1e3))


def test_a_tasks_config_overrides_the_settings_within_bounds() -> None:
    settings = Training(epochs=2, max_steps=10)
    plan = trainer.plan(settings, {"epochs": 5, "learning_rate": 0.5, "unknown": "x"})
    assert plan == trainer.Plan(epochs=5, max_steps=10, proximal_mu=0.0, learning_rate=0.5)
    for config in (
        {"epochs": 0},
        {"epochs": "many"},
        {"max_steps": 1e12},
        {"learning_rate": True},
        {"proximal_mu": -1},
    ):
        with pytest.raises(MessageError, match=next(iter(config))):
            trainer.plan(settings, config)  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", ["q8", "f16"])
def test_the_sum_of_what_was_sent_converges_to_the_sum_of_the_deltas(bundles: Bundles, chosen: Any) -> None:
    shape = bundles("forecast").manifest
    rng = np.random.default_rng(2)
    chance = random.Random(3)
    total = np.zeros(shape.parameters)
    received = np.zeros(shape.parameters)
    residual = None
    largest = 0.0
    for _ in range(100):
        delta = rng.normal(0, 0.01, shape.parameters).astype(np.float32)
        wire, residual = compress(delta, residual, shape, chosen, chance)
        sent = np.empty(shape.parameters, np.float32)
        encoding.decode_into(sent, wire, shape.weights)
        total += delta
        received += sent
        assert residual is not None
        largest = max(largest, float(np.abs(residual).max()))
        np.testing.assert_allclose(received + residual, total, atol=1e-5)
    # One update's rounding, not a hundred's.
    assert np.abs(received - total).max() <= largest + 1e-5
    assert largest < 2 * 0.06 / 127
    wire, residual = compress(np.zeros(shape.parameters, np.float32), residual, shape, "f32", chance)
    encoding.decode_into(sent, wire, shape.weights)
    assert residual is None
    np.testing.assert_allclose(received + sent, total, atol=1e-5)
