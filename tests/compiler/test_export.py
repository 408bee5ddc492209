import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen.compiler import command, export, export_keras
from pollen.errors import CompileError


@pytest.fixture
def model_file(dropout_model: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    dropout_model.save(path)
    return path


@pytest.fixture
def weights(dropout_bundle: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {tensor.name: rng.standard_normal(tensor.shape, np.float32) for tensor in dropout_bundle.manifest.weights}


def test_exported_weights_are_those_the_bundle_names(model_file: Path, weights: dict[str, Any], tmp_path: Path) -> None:
    import keras

    export_keras(model_file, weights, tmp_path / "out.keras")
    model = keras.models.load_model(tmp_path / "out.keras")
    np.testing.assert_array_equal(model.get_layer("hidden").kernel, weights["hidden/kernel"])
    np.testing.assert_array_equal(model.get_layer("classes").bias, weights["classes/bias"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.keras", "out.keras"}


def test_the_command_reads_an_npz_file(
    model_file: Path, weights: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "w.npz", **weights)
    arguments = [str(model_file), "--weights", str(tmp_path / "w.npz"), "-o", str(tmp_path / "out.keras")]
    assert export.main(arguments) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{tmp_path / 'out.keras'}: 4 tensors, 123 parameters\n"
    assert printed.err == ""
    assert (tmp_path / "out.keras").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden/kernel": None}, r"missing \['hidden/kernel'\]"),
        ({"other": np.zeros(1, np.float32)}, r"unknown \['other'\]"),
        ({"classes/bias": np.zeros(4, np.float32)}, r"'classes/bias' must be finite float32 \[3\], not float32 \[4\]"),
        ({"classes/bias": np.zeros(3)}, "not float64"),
        ({"classes/bias": np.full(3, np.nan, np.float32)}, "must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model_file: Path, weights: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    changed = {name: values for name, values in (weights | change).items() if values is not None}
    with pytest.raises(CompileError, match=message):
        export_keras(model_file, changed, tmp_path / "out.keras")
    assert not (tmp_path / "out.keras").exists()


def test_pickles_and_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, a=np.array([{}], dtype=object))
    text = tmp_path / "text.npz"
    text.write_text("weights")
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    for path in (pickled, text, single, tmp_path / "missing.npz"):
        with pytest.raises(CompileError, match=f"{path.name}: not an .npz file"):
            export.read_weights(path)


@pytest.mark.parametrize("run", [command.main, export.main], ids=["compile", "export"])
def test_help_shows_an_example(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--help"])
    assert caught.value.code == 0
    assert "examples:\n  pollen " in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a model"])
def test_a_model_file_that_can_not_be_read_gives_one_line(
    content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    assert command.main([str(path), "--loss", "mse", "-o", str(tmp_path / "m.bundle")]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.count("\n") == 1


def test_on_a_terminal_compiling_says_what_it_is_at(dropout_model: Any, tmp_path: Path) -> None:
    dropout_model.save(tmp_path / "gestures.keras")
    master, terminal = pty.openpty()
    words = ["gestures.keras", "--loss", "sparse_categorical_crossentropy", "-o", "gestures.bundle"]
    script = f"from pollen.compiler.command import main; raise SystemExit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=terminal,
        timeout=120,
        check=True,
    )
    shown = os.read(master, 4096).decode().splitlines()
    assert [line.split(" model")[0] for line in shown[:3]] == [
        "loading TensorFlow",
        "converting",
        "comparing it with Keras",
    ]
    assert done.stdout.startswith(b"gestures.bundle: model gestures, 123 parameters")
