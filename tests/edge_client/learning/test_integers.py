"""A device whose model takes integers (an Embedding) learns from its sensor's raw values."""

import importlib.util
import random

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.learning.learner import Learner
from edge_client.learning.standardise import Standardiser
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner as LearnerSettings
from edge_client.training import trainer
from pollen.bundle import Bundle
from pollen.interpreter import load

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="compiling needs TensorFlow")

STATES = 12
T = 4


def _compile(states: int) -> Bundle:
    import keras

    from pollen.compiler import compile  # noqa: A004

    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((T, 1), dtype="int32"),
            layers.Reshape((T,)),
            layers.Embedding(states, 4),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    return compile(
        model, loss="sparse_categorical_crossentropy", optimizer="sgd", learning_rate=0.5, batch=8, name="states"
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return _compile(STATES)


def _samples(count: int) -> list[Sample]:
    """States of a machine; the label is the newest state modulo 3."""
    states = np.random.default_rng(0).integers(0, STATES, count)
    return [
        Sample(index, float(index), 0.0, np.full((1, 1), state, np.float32), int(state) % 3)
        for index, state in enumerate(states)
    ]


def _learner(bundle: Bundle) -> Learner:
    return Learner(load(bundle), LearnerSettings(target="label", replay_samples=400), 1, Standardiser(1, 1000))


def test_readings_are_taken_as_they_are_from_the_first_on(bundle: Bundle) -> None:
    one, samples = _learner(bundle), _samples(20)
    assert one.observe(samples, bundle.weights, bundle.state) == 20 - T + 1
    x, _ = one.buffer.take(np.arange(2))
    assert x.dtype == np.int32
    assert x[1].tolist() == [[int(sample.values[0, 0])] for sample in samples[1 : T + 1]]


def test_training_on_them_brings_the_error_down(bundle: Bundle) -> None:
    one, samples = _learner(bundle), _samples(400)
    one.observe(samples, bundle.weights, bundle.state)
    evaluation = trainer.EvaluationRun(load(bundle), one.buffer, bundle.weights, bundle.state, SystemClock())
    assert evaluation.advance(60)
    run = trainer.TrainingRun(
        load(bundle),
        one.buffer,
        start=(bundle.weights, bundle.state),
        base=(bundle.weights, bundle.state),
        steps_done=0,
        plan=trainer.Plan(10, 1000, 0.0, None),
        chance=random.Random(0),
        clock=SystemClock(),
    )
    assert run.advance(60)
    assert run.result is not None
    after = trainer.EvaluationRun(load(bundle), one.buffer, run.result.weights, bundle.state, SystemClock())
    assert after.advance(60)
    assert evaluation.metrics["error"] > 0.5
    assert after.metrics["error"] < 0.1


def test_a_reading_that_is_none_of_its_integers_is_left_out_and_counted(bundle: Bundle) -> None:
    one, samples = _learner(bundle), _samples(20)
    samples[10].values[0, 0] = STATES
    assert one.observe(samples, bundle.weights, bundle.state) == 20 - T + 1 - T
    assert one.unknown_inputs == T
    assert one.unknown_labels == 0


def test_a_model_of_more_integers_needs_a_new_learner(bundle: Bundle) -> None:
    one = _learner(bundle)
    assert one.use(load(bundle))
    assert not one.use(load(_compile(STATES + 1)))
