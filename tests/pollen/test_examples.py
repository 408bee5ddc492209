"""Examples from .npz files: what fits the model is taken, everything else is one line that names the file."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen import examples
from pollen.errors import SettingsError
from pollen.manifest import Manifest
from tests.server.gateway_client import bundle


def manifest(**changes: Any) -> Manifest:
    """A model of two numbers and one target, with some of its fields changed."""
    return replace(bundle().manifest, **changes)


def test_inputs_and_labels_take_the_models_dtype_and_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(6.0).reshape(3, 2), y=np.arange(3), other=np.zeros(1))
    found = examples.read(tmp_path / "a.npz", manifest())
    assert (found.x.dtype, found.x.shape) == (np.float32, (3, 2))
    assert found.y is not None
    assert (found.y.dtype, found.y.tolist()) == (np.float32, [[0.0], [1.0], [2.0]])


def test_labels_may_be_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2)))
    assert examples.read(tmp_path / "a.npz", manifest()).y is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros(2)}, "holds no array x"),
        ({"x": np.zeros((3, 5))}, r"x is float64 \[3, 5\], the model takes numbers of shape \[n, 2\]"),
        ({"x": np.zeros((0, 2))}, r"x is float64 \[0, 2\]"),
        ({"x": np.array(1.0)}, r"x is float64 \[\]"),
        ({"x": np.full((3, 2), "a")}, "x is <U1"),
        ({"x": np.full((3, 2), np.nan)}, "x holds NaN or infinity"),
        ({"x": np.zeros((3, 2)), "y": np.full(3, np.inf)}, "y holds NaN or infinity"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "3 examples x with 2 labels y|y is float64"),
        ({"x": np.full((3, 2), None)}, "needs plain arrays x and y in an .npz file"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: Any, says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SettingsError, match=f"a.npz: ({says})"):
        examples.read(tmp_path / "a.npz", manifest())


def test_numbers_that_are_no_class_or_no_word_are_refused(tmp_path: Path) -> None:
    words = manifest(input_dtype="int32", input_below=9, output_shape=(4,), label_shape=(), label_dtype="int32")
    for x, y, says in ((9, 3, "0 to 8"), (-1, 3, "0 to 8"), (8, 4, "0 to 3"), (8, -1, "0 to 3")):
        np.savez(tmp_path / "a.npz", x=np.full((3, 2), x), y=np.full(3, y))
        with pytest.raises(SettingsError, match=says):
            examples.read(tmp_path / "a.npz", words)
    np.savez(tmp_path / "a.npz", x=np.full((3, 2), 8), y=np.full(3, 3))
    assert examples.read(tmp_path / "a.npz", words).x.dtype == np.int32


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(SettingsError, match=r"a\.npz: needs plain arrays"):
        examples.read(tmp_path / "a.npz", manifest())
    with pytest.raises(SettingsError, match=r"b\.npz: needs plain arrays"):
        examples.read(tmp_path / "b.npz", manifest())


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(10**7))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    monkeypatch.setattr(examples, "LIMIT_BYTES", 10**6)
    with pytest.raises(SettingsError, match="10000000 bytes unpacked, at most 1000000 are read"):
        examples.read(tmp_path / "a.npz", manifest())
