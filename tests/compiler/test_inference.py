"""Inference graphs predict as Keras does on both interpreters, are smaller when quantised, and say what was lost."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import CompileError
from pollen.examples import Examples
from pollen.inference_graph import InferenceGraph
from pollen.messages import GRAPH_KINDS, GraphKind
from tests import tflite

ROOT = Path(__file__).parents[2]
# Of the largest output.
FARTHEST: dict[GraphKind, float] = {"float32": 1e-5, "dynamic": 0.03, "int8": 0.1}


def mlp(layers: Any) -> list[Any]:
    return [
        layers.Input((64,)),
        layers.Dense(128, activation="relu", name="hidden"),
        layers.Dropout(0.2),
        layers.Dense(80, activation="silu"),
        layers.Dense(10, activation="softmax"),
    ]


def cnn(layers: Any) -> list[Any]:
    return [
        layers.Input((14, 14, 2)),
        layers.Conv2D(12, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(2),
        layers.Conv2D(24, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, activation="softmax"),
    ]


def conv1d(layers: Any) -> list[Any]:
    return [
        layers.Input((32, 3)),
        layers.Conv1D(24, 5, padding="causal", activation="relu"),
        layers.MaxPooling1D(2),
        layers.Conv1D(32, 3, dilation_rate=2),
        layers.LayerNormalization(),
        layers.GlobalAveragePooling1D(),
        layers.Dense(10, activation="softmax"),
    ]


def gru(layers: Any) -> list[Any]:
    return [layers.Input((12, 8)), layers.GRU(40), layers.Dense(10, activation="softmax")]


def words(layers: Any) -> list[Any]:
    return [
        layers.Input((12,), dtype="int32"),
        layers.Embedding(200, 32),
        layers.GlobalAveragePooling1D(),
        layers.Dense(32, activation="tanh"),
        layers.Dense(10, activation="softmax"),
    ]


class Trained:
    """A compiled model, weights that are not the bundle's, and data whose labels are what these weights say."""

    def __init__(self, build: Any) -> None:
        import keras

        from pollen.compiler import compile as compile_model
        from pollen.compiler import verification, weights

        keras.utils.set_random_seed(11)
        self.keras = keras.Sequential(build(keras.layers), name=build.__name__)
        self.bundle = compile_model(self.keras, loss="sparse_categorical_crossentropy", batch=8)
        rng = np.random.default_rng(1)
        manifest = self.bundle.manifest
        moved = self.bundle.shared + rng.normal(0, 0.05, manifest.shared_size).astype(np.float32)
        self.shared = {name: np.array(value) for name, value in named(moved, manifest.shared).items()}
        for name, value in self.shared.items():
            if name.endswith("moving_variance"):
                value[:] = np.abs(value)
        for tensor, variable in weights.variables(self.keras).all():
            variable.assign(self.shared[tensor.name])
        self.x = verification.random_inputs(manifest, 300, rng)
        self.expected = self.keras.predict(self.x, verbose=0)
        self.holdout = Examples(self.x, self.expected.argmax(-1).astype(np.int32))

    def make(self, kind: GraphKind, **options: Any) -> Any:
        from pollen.compiler import inference

        given = {"shared": self.shared, "calibration": Examples(self.x, None), "holdout": self.holdout}
        return inference.make(self.bundle, kind, **(given | options))


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained(mlp)


@pytest.mark.parametrize("build", [mlp, cnn, conv1d, gru, words], ids=lambda build: build.__name__)
def test_every_kind_predicts_as_keras_does_on_both_interpreters(build: Any, tmp_path: Path) -> None:
    model = Trained(build)
    sizes = {}
    for kind in GRAPH_KINDS:
        made = model.make(kind)
        (tmp_path / f"{kind}.tflite").write_bytes(made.graph)
        sizes[kind] = len(made.graph)
        assert made.float_bytes == sizes["float32"]
    model.bundle.write(tmp_path / "model.bundle")
    np.savez(tmp_path / "examples.npz", x=model.x)
    for runtime, python in (("litert", sys.executable), ("tflite", tflite.python())):
        run(python, runtime, tmp_path)
        for kind in GRAPH_KINDS:
            farthest = np.abs(np.load(tmp_path / f"{kind}.{runtime}.npy") - model.expected).max()
            assert farthest <= FARTHEST[kind] * np.abs(model.expected).max(), (kind, runtime)
    assert max(sizes["dynamic"], sizes["int8"]) < sizes["float32"]


def run(python: str, runtime: str, folder: Path) -> None:
    done = subprocess.run(
        [python, str(Path(__file__).with_name("inference_outputs.py")), runtime, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_loss_that_is_told_is_keras_own(trained: Trained) -> None:
    made = trained.make("int8")
    trained.keras.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = trained.keras.evaluate(trained.x, trained.holdout.y, verbose=0)
    assert made.metrics["float_loss"] == pytest.approx(loss, rel=1e-4)
    assert made.metrics["float_error"] == pytest.approx(1 - accuracy, abs=1e-6) == 0.0
    output = InferenceGraph(made.graph, trained.bundle.manifest).predict(trained.x)
    assert made.metrics["error"] == pytest.approx(np.mean(output.argmax(-1) != trained.holdout.y))
    assert made.metrics["max_difference"] == pytest.approx(np.abs(output - trained.expected).max(), rel=1e-3)
    assert 0 < made.metrics["mean_difference"] < made.metrics["max_difference"]


def test_without_labels_only_the_difference_is_told(trained: Trained) -> None:
    made = trained.make("dynamic", holdout=None, calibration=None)
    assert set(made.metrics) == {"max_difference", "mean_difference"}


def test_without_weights_the_bundles_own_predict(trained: Trained) -> None:
    made = trained.make("float32", shared=None)
    from pollen import interpreter

    expected = interpreter.load(trained.bundle).predict(trained.bundle.weights, trained.x)
    found = InferenceGraph(made.graph, trained.bundle.manifest).predict(trained.x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_same_weights_give_the_same_bytes(trained: Trained) -> None:
    assert trained.make("int8").graph == trained.make("int8").graph


def test_frozen_and_personal_layers_keep_the_bundles_values() -> None:
    import keras

    from pollen.compiler import compile as compile_model
    from pollen.compiler import inference

    keras.utils.set_random_seed(2)
    names = ["features", "middle", "head"]
    model = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(6, "tanh", name=name) for name in names)])
    bundle = compile_model(model, loss="mse", batch=4, frozen=["features"], personal=["head"])
    assert {tensor.layer for tensor in bundle.manifest.shared} == {"middle"}
    shared = {tensor.name: np.full(tensor.shape, 0.25, np.float32) for tensor in bundle.manifest.shared}
    made = inference.make(bundle, "float32", shared=shared)
    model.get_layer("middle").set_weights([np.full((6, 6), 0.25), np.full(6, 0.25)])
    x = np.random.default_rng(0).standard_normal((20, 6), np.float32)
    np.testing.assert_allclose(
        InferenceGraph(made.graph, bundle.manifest).predict(x), model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("hidden/bias"), r"missing \['hidden/bias'\]"),
        (lambda w: w.update(other=np.zeros(3, np.float32)), r"unknown \['other'\]"),
        (lambda w: w.update({"hidden/bias": np.zeros(3, np.float32)}), r"'hidden/bias' must be finite float32 \[128\]"),
        (lambda w: w["hidden/bias"].fill(np.nan), r"'hidden/bias' must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained: Trained, change: Any, says: str) -> None:
    shared = {name: value.copy() for name, value in trained.shared.items()}
    change(shared)
    with pytest.raises(CompileError, match=says):
        trained.make("float32", shared=shared)


def test_a_bundle_without_an_architecture_is_refused(trained: Trained) -> None:
    from pollen.compiler import inference

    bare = replace(trained.bundle, manifest=replace(trained.bundle.manifest, architecture=""))
    with pytest.raises(CompileError, match="model mlp: it holds no Keras architecture; compile it again"):
        inference.make(bare, "float32")


def test_integers_throughout_need_calibration(trained: Trained) -> None:
    with pytest.raises(CompileError, match="kind int8 needs calibration"):
        trained.make("int8", calibration=None)


def test_a_quantised_graph_that_grows_is_refused() -> None:
    import keras

    from pollen.compiler import compile as compile_model
    from pollen.compiler import inference

    bundle = compile_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), loss="mse", batch=4)
    x = np.random.default_rng(0).standard_normal((50, 2), np.float32)
    with pytest.raises(CompileError, match=r"as int8 it has \d+ bytes, as float32 \d+; use float32"):
        inference.make(bundle, "int8", calibration=Examples(x, None))


def test_a_kind_that_loses_too_much_is_refused(trained: Trained) -> None:
    # Ranges taken from inputs a hundred times too small: almost everything is clipped.
    narrow = Examples(trained.x * np.float32(0.01), None)
    assert trained.make("int8", calibration=narrow).metrics["error"] > 0.3
    with pytest.raises(CompileError, match=r"as int8 its error is 0\.\d+, as trained 0: more than 0.1 above"):
        trained.make("int8", calibration=narrow, max_added_error=0.1)
    assert trained.make("int8", max_added_error=0.1).metrics["error"] <= 0.1
    with pytest.raises(CompileError, match="can't be measured; give holdout examples with labels"):
        trained.make("int8", holdout=None, max_added_error=0.1)


# --- pollen inference


@pytest.fixture
def files(trained: Trained, tmp_path: Path) -> Path:
    trained.bundle.write(tmp_path / "model.bundle")
    np.savez(tmp_path / "final.npz", **trained.shared)
    np.savez(tmp_path / "recent.npz", x=trained.x)
    np.savez(tmp_path / "heldout.npz", X=trained.x, y=trained.holdout.y)
    return tmp_path


def command(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pollen.compiler.inference_command", "model.bundle", "-o", "model.tflite", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_writes_the_graph_and_says_what_it_cost(files: Path, trained: Trained) -> None:
    options = ("--weights", "final.npz", "--kind", "int8", "--calibration", "recent.npz", "--holdout", "heldout.npz")
    done = command(files, *options)
    made = trained.make("int8")
    assert (files / "model.tflite").read_bytes() == made.graph
    size, error = f"int8, {len(made.graph)} bytes (float32 {made.float_bytes})", made.metrics["error"]
    assert done.stdout.startswith(f"model.tflite: {size}, error {error:.4g}, loss ")
    told = json.loads(command(files, "--json", *options).stdout)
    assert told == {
        "kind": "int8",
        "float_bytes": made.float_bytes,
        "metrics": pytest.approx(made.metrics),
        "refusals": [],
    }


def test_of_several_kinds_the_first_that_will_do_is_made(files: Path) -> None:
    done = command(files, "--kind", "int8", "--kind", "dynamic", "--holdout", "heldout.npz")
    assert done.stdout.startswith("model.tflite: dynamic, ")
    assert done.stderr == "kind int8 needs calibration: some hundred inputs as the model sees them\n"
    assert Bundle.read(files / "model.bundle").manifest.model == "mlp"


def test_what_cannot_be_made_is_one_line(files: Path) -> None:
    np.savez(files / "wrong.npz", x=np.zeros((5, 3), np.float32))
    done = command(files, "--kind", "int8", "--calibration", "wrong.npz", code=1)
    assert done.stderr == "error: wrong.npz: x is float32 [5, 3], the model takes numbers of shape [n, 64], n >= 1\n"
    assert not (files / "model.tflite").exists()
    assert command(files, "--kind", "int8", code=1).stderr.startswith("error: kind int8 needs calibration")
