"""The device trains as Keras does: 20 steps of every kind of model with every optimizer on both interpreters."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pollen
from pollen.bundle import Bundle
from tests import tflite

STEPS, BATCH = 20, 16
PROJECT = Path(__file__).parents[2]
# Below this share of a step's largest gradient, float32 sums taken in another order differ in sign.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Case:
    """One kind of model: how to build it (given the layer that stands for Dropout), its loss and its labels."""

    build: Callable[[Any, Any], Any]
    loss: str
    labels: Callable[[np.random.Generator], Any]


def _classes(count: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.integers(0, count, (STEPS, BATCH), np.int32)


def _one_hot(count: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: np.eye(count, dtype=np.float32)[rng.integers(0, count, (STEPS, BATCH))]


def _reals(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.standard_normal((STEPS, BATCH, *shape), np.float32)


def _coins(rng: np.random.Generator) -> Any:
    return rng.integers(0, 2, (STEPS, BATCH, 1)).astype(np.float32)


def _cnn(layers: Any, _dropout: Any) -> list[Any]:
    return [
        layers.Input((64, 3)),
        layers.Conv1D(16, 5, activation="relu"),
        layers.MaxPooling1D(2),
        layers.Conv1D(16, 3, padding="causal", activation="relu"),
        layers.AveragePooling1D(3, 2, "same"),
        layers.Conv1D(24, 3, strides=2, padding="same", activation="relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(10),
    ]


def _dilated(layers: Any, _dropout: Any) -> list[Any]:
    return [
        layers.Input((33, 3)),
        layers.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="relu"),
        layers.Conv1D(8, 3, dilation_rate=4, padding="same", activation="elu"),
        layers.MaxPooling1D(3, 2, "same"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(4, activation="softmax"),
    ]


def _mlp(layers: Any, _dropout: Any) -> list[Any]:
    return [
        layers.Input((64,)),
        layers.Dense(64, activation="relu"),
        layers.Dense(40, activation="relu"),
        layers.Dense(10),
    ]


def _dropped(layers: Any, dropout: Any) -> list[Any]:
    return [
        layers.Input((32,)),
        layers.Dense(64, activation="relu"),
        dropout(0.3),
        layers.Dense(32, activation="silu"),
        dropout(0.5),
        layers.Dense(6, activation="softmax"),
    ]


def _regression(layers: Any, _dropout: Any) -> list[Any]:
    return [
        layers.Input((8, 4)),
        layers.Flatten(),
        layers.Dense(32, activation="tanh"),
        layers.Dense(24, activation="sigmoid"),
        layers.Dense(3),
    ]


def _binary(layers: Any, _dropout: Any) -> list[Any]:
    return [layers.Input((20,)), layers.Dense(24, activation="selu"), layers.Dense(1, activation="sigmoid")]


CASES = {
    "mlp": Case(_mlp, "sparse_categorical_crossentropy", _classes(10)),
    "cnn": Case(_cnn, "sparse_categorical_crossentropy", _classes(10)),
    "dilated-probabilities": Case(_dilated, "categorical_crossentropy", _one_hot(4)),
    "dropout-probabilities": Case(_dropped, "sparse_categorical_crossentropy", _classes(6)),
    "regression": Case(_regression, "mse", _reals(3)),
    "binary-probabilities": Case(_binary, "binary_crossentropy", _coins),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda optimizers: optimizers.SGD(0.05),
    "momentum": lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
    "nesterov": lambda optimizers: optimizers.SGD(0.02, momentum=0.8, nesterov=True),
    "adam": lambda optimizers: optimizers.Adam(0.001),
}


@dataclass(frozen=True)
class Trajectory:
    weights: Any
    losses: Any


def _fixed_dropout(uniforms: list[Any]) -> Any:
    """A Dropout for the reference that takes its uniform numbers from a Keras variable: TensorFlow's own formula."""
    import keras

    class FixedDropout(keras.layers.Layer):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.rate = rate

        def build(self, shape: Any) -> None:
            self.uniform = self.add_weight(shape=(BATCH, *shape[1:]), trainable=False, name="uniform")
            uniforms.append(self.uniform)

        def call(self, inputs: Any, training: bool = False) -> Any:
            scaled = inputs * (1 / (1 - self.rate))
            return keras.ops.where(self.uniform >= self.rate, scaled, 0.0) if training else inputs

    return FixedDropout


def _keras_trajectory(case: Case, optimizer: str, start: Any, batches: dict[str, Any]) -> Trajectory:
    """20 times `train_on_batch` from the weights `start`."""
    import keras

    uniforms: list[Any] = []
    model = keras.Sequential(case.build(keras.layers, _fixed_dropout(uniforms)))
    for variable, values in zip(model.trainable_variables, start, strict=True):
        variable.assign(values)
    from_logits = not case.loss.endswith("mse") and model.layers[-1].activation is keras.activations.linear
    loss: Any = keras.losses.get(case.loss)
    if from_logits:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=OPTIMIZERS[optimizer](keras.optimizers), loss=loss)
    losses = []
    for index in range(STEPS):
        for number, uniform in enumerate(uniforms):
            uniform.assign(batches[f"u{number}"][index])
        model.reset_metrics()
        losses.append(float(model.train_on_batch(batches["x"][index], batches["y"][index])))
    weights = np.concatenate([np.asarray(variable).ravel() for variable in model.trainable_variables])
    return Trajectory(weights, np.array(losses))


@dataclass(frozen=True)
class Prepared:
    folder: Path
    references: dict[str, Trajectory]
    predictions: dict[str, Any]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Every model compiled once, its batches, and what Keras makes of them, in one folder."""
    import keras

    import pollen.compiler
    from pollen.compiler import optimizers

    folder = tmp_path_factory.mktemp("training-steps")
    references, predictions, lines = {}, {}, []
    for number, (name, case) in enumerate(CASES.items()):
        keras.utils.set_random_seed(number)
        rng = np.random.default_rng(number)
        model = keras.Sequential(case.build(keras.layers, keras.layers.Dropout))
        bundle = pollen.compiler.compile(model, loss=case.loss, optimizer="sgd", batch=BATCH, name=name)
        batches = {
            "x": rng.standard_normal((STEPS, BATCH, *bundle.manifest.input_shape), np.float32),
            "y": case.labels(rng),
        }
        for index, shape in enumerate(bundle.manifest.noise):
            batches[f"u{index}"] = rng.random((STEPS, *shape), np.float32)
        np.savez(folder / f"{name}.npz", **batches)
        predictions[name] = np.asarray(model(batches["x"][0], training=False))
        start = [np.asarray(variable) for variable in model.trainable_variables]
        for optimizer, make in OPTIMIZERS.items():
            described = optimizers.parse(make(keras.optimizers), None)
            manifest = replace(bundle.manifest, optimizer=described)
            replace(bundle, manifest=manifest).write(folder / f"{name}.{optimizer}.bundle")
            references[f"{name}.{optimizer}"] = _keras_trajectory(case, optimizer, start, batches)
            lines.append(f"{name}.{optimizer} {name}\n")
    (folder / "cases.txt").write_text("".join(lines))
    return Prepared(folder, references, predictions)


@pytest.fixture(scope="session", params=["litert", "tflite"])
def trained(request: pytest.FixtureRequest, prepared: Prepared) -> str:
    """The interpreter that has trained all cases, in one process of its own."""
    runtime: str = request.param
    python = sys.executable if runtime == "litert" else tflite.python()
    environment = os.environ | {"PYTHONPATH": str(Path(pollen.__file__).parents[1])}
    script = Path(__file__).with_name("training_steps.py")
    run = subprocess.run(
        [python, script, prepared.folder, runtime],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("ai-edge-litert 2." if runtime == "litert" else "tflite-runtime 2.14")
    return runtime


@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_on_the_device_end_where_keras_ends(
    trained: str, prepared: Prepared, name: str, optimizer: str
) -> None:
    expected = prepared.references[f"{name}.{optimizer}"]
    with np.load(prepared.folder / f"{name}.{optimizer}.{trained}.npz") as found:
        weights, losses, gradients = found["weights"], found["losses"], np.abs(found["gradients"])
        np.testing.assert_allclose(found["prediction"], prepared.predictions[name], rtol=0, atol=1e-5)
    start = Bundle.read(prepared.folder / f"{name}.{optimizer}.bundle").weights
    moved = np.abs(expected.weights - start)
    assert moved.max() > 1e-3, "Keras has to have learned something for this to mean anything"
    difference = np.abs(weights - expected.weights)
    loss_difference = float(np.abs(losses - expected.losses).max())
    if optimizer == "adam":
        # Adam divides by the gradient's size, so where that is rounding noise, so is the step.
        certain = (gradients > ROUNDING * gradients.max(axis=1, keepdims=True)).all(axis=0)
        assert certain.mean() > 0.2
        worst = float(difference[certain].max())
        limit, loss_limit = 1e-4, 1e-3
    else:
        worst = float(difference.max())
        limit, loss_limit = 1e-5, 1e-4
    assert worst <= limit
    assert loss_difference <= loss_limit
