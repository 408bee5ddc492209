"""`pollen model`, as an operator runs it: a process of its own beside, or after, a real server."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pollen.bundle import Bundle
from server import lifecycle, model_command
from server.store import Commit, StateStore
from tests.server.gateway_client import GatewayClient, bundle, update
from tests.server.running_models import RunningModel

ROOT = Path(__file__).parents[2]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.model_command", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_list_and_export_work_beside_a_server_and_rollback_after_it(tmp_path: Path) -> None:
    server = RunningModel(bundle(), tmp_path).start()
    try:
        with GatewayClient(server.grid.port) as gateway:
            gateway.birth("pi-1")
            for _ in range(2):
                gateway.upload("pi-1", update(gateway.task("pi-1"), bundle(), 2.0))
                assert gateway.receipt("pi-1").outcome == "merged"
            out = tmp_path / "out.npz"
            exported = run("export", tmp_path, "--version", 1, "-o", out)
            assert (exported.returncode, exported.stdout) == (0, f"{out}: version 1 of small, 5 parameters\n")
            with np.load(out) as arrays:
                np.testing.assert_array_equal(arrays["t0"], np.ones(3))
            refused = run("rollback", tmp_path, 1)
            assert refused.returncode == 1
            assert refused.stderr.startswith(f"error: {tmp_path}/state.sqlite: in use by another server; stop it")
    finally:
        server.close()
    done = run("rollback", tmp_path, 1)
    told = "version 3 has the weights of version 1; start the server to go on from there\n"
    assert (done.returncode, done.stdout) == (0, told)
    lines = run("list", tmp_path).stdout.splitlines()
    assert lines[0].split() == ["version", "published", "(UTC)", "kept", "as"]
    assert [(line.split()[0], line.partition(":")[2][7:]) for line in lines[1:]] == [
        ("0", "base model"),
        ("1", "base model"),
        ("2", "base model, rolled back"),
        ("3", "newest"),
    ]


@pytest.mark.parametrize("words", [["export", "-o", "x.npz", "--version", str(2**70)], ["rollback", str(2**70)]])
def test_a_version_that_no_store_can_hold_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    stored(tmp_path, bundle())
    assert model_command.main([words[0], str(tmp_path), *words[1:]]) == 1
    assert capsys.readouterr().err.endswith(
        f"version {2**70} is not kept; the nearest is 7, `pollen model list` shows all\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["list"], 1, "state.sqlite: no such file; give a state_dir"),
        (["export", "-o", "x.h5"], 2, "x.h5: the file's name must end in .npz or .keras"),
        (["export", "-o", "x.npz"], 1, "no such file"),
        (["rollback", "3"], 1, "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert model_command.main([words[0], str(tmp_path), *words[1:]]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_help_shows_examples_for_every_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        model_command.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"pollen model {action} state" in text for action in ("list", "export", "rollback"))
    for words in ([], ["list"], ["export", "s"], ["rollback", "s", "x"]):
        with pytest.raises(SystemExit, match="2"):
            model_command.main(words)


@pytest.fixture(scope="module")
def compiled() -> Bundle:
    import keras

    from pollen import compiler

    model = keras.Sequential(
        [
            keras.Input((6, 2)),
            keras.layers.Conv1D(3, 2, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2, activation="softmax", name="classes"),
        ],
        name="gestures",
    )
    made: Bundle = compiler.compile(model, loss="categorical_crossentropy", batch=4)
    return made


def stored(folder: Path, of: Bundle) -> np.ndarray:
    """A state at version 7, whose weights are returned."""
    lifecycle.keep_bundle(folder, of)
    weights = np.random.default_rng(7).normal(size=of.weights.size).astype(np.float32)
    store = StateStore(folder / lifecycle.STATE)
    store.begin(of.digest, 0, of.weights)
    store.commit(Commit(7, weights))
    store.close()
    return weights


def test_a_keras_model_is_exported_without_the_file_it_was_compiled_from(
    tmp_path: Path, compiled: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    import keras

    weights = stored(tmp_path, compiled)
    out = tmp_path / "out.keras"
    assert model_command.main(["export", str(tmp_path), "-o", str(out)]) == 0
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == (f"{out}: version 7 of gestures, {weights.size} parameters\n", "")
    model = keras.models.load_model(out)
    np.testing.assert_array_equal(np.concatenate([np.ravel(w) for w in model.get_weights()]), weights)
    assert [layer.name for layer in model.layers if layer.weights] == ["conv", "classes"]
    assert model.predict(np.zeros((1, 6, 2)), verbose=0).shape == (1, 2)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_keras_a_keras_file_is_refused_with_what_to_install(tmp_path: Path) -> None:
    stored(tmp_path, bundle())
    script = (
        "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None\n"
        "from server.model_command import main; raise SystemExit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", script, "export", str(tmp_path), "-o", "out.keras", "--model", "own.keras"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "pip install 'pollen-fl[compiler]', or export to .npz" in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_keras_file_may_be_filled_and_one_that_does_not_fit_is_refused(
    tmp_path: Path, compiled: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    import keras

    stored(tmp_path, compiled)
    own, out = tmp_path / "own.keras", tmp_path / "out.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="other")]).save(own)
    assert model_command.main(["export", str(tmp_path), "-o", str(out), "--model", str(own)]) == 1
    assert f"error: {own}: the weights don't fit this model; missing" in capfd.readouterr().err
    assert not out.exists()


def test_frozen_and_personal_layers_are_exported_as_they_are_in_the_bundle(tmp_path: Path) -> None:
    import keras

    from pollen import compiler

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", name="fixed"),
            layers.Dense(4, activation="relu", name="common"),
            layers.Dense(2, name="own"),
        ],
        name="gestures",
    )
    of = compiler.compile(model, loss="mse", batch=4, frozen=["fixed"], personal=["own"])
    lifecycle.keep_bundle(tmp_path, of)
    store = StateStore(tmp_path / lifecycle.STATE)
    store.begin(of.digest, 0, np.full(of.manifest.shared_size, 0.5, np.float32))
    store.close()
    out = tmp_path / "out.keras"
    assert model_command.main(["export", str(tmp_path), "-o", str(out)]) == 0
    exported = keras.models.load_model(out)
    for layer in ("fixed", "own"):
        for found, expected in zip(exported.get_layer(layer).weights, model.get_layer(layer).weights, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert all(np.all(np.asarray(weight) == 0.5) for weight in exported.get_layer("common").weights)


def test_a_bundle_without_an_architecture_asks_for_the_keras_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, bundle())
    assert model_command.main(["export", str(tmp_path), "-o", str(tmp_path / "out.keras")]) == 1
    assert "give the .keras file" in capfd.readouterr().err
