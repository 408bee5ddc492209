from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen.demo import npz_file
from pollen.demo.recording import DataError

MOTIONSENSE = Path(__file__).parents[4] / "shared/data/motionsense-har/public.npz"


def write(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_scale_is_applied_to_each_channel(tmp_path: Path) -> None:
    x = np.array([[[1, 10], [2, 20]]] * 2, np.int16)
    path = write(tmp_path, X=x, scale=np.array([0.5, 0.1], np.float32), y=np.array([0, 1]), subject=np.array([7, 8]))
    recording = npz_file.read(path)
    np.testing.assert_allclose(recording.x[0], [[0.5, 1.0], [1.0, 2.0]], rtol=1e-6)
    assert recording.subject.tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("y", "task"),
    [(np.array([3, 5, 3]), "classification"), (np.array([0.5, 1, 2]), "regression"), (None, "forecast")],
)
def test_the_dtype_of_y_says_what_is_learned(tmp_path: Path, y: Any, task: str) -> None:
    arrays = {"X": np.ones((3, 2)), "device": np.array(["a", "a", "b"])} | ({} if y is None else {"y": y})
    recording = npz_file.read(write(tmp_path, **arrays))
    assert recording.task == task
    if task == "classification":
        assert recording.y is not None
        assert recording.y.tolist() == [0, 1, 0]
        assert recording.classes == ("3", "5")


def test_windows_without_labels_are_laid_end_to_end(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    recording = npz_file.read(write(tmp_path, X=x, device=np.array(["a", "b"])))
    np.testing.assert_array_equal(recording.x, x.reshape(6, 2))
    assert recording.subject.tolist() == ["a"] * 3 + ["b"] * 3


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    x = np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, np.inf]])
    recording = npz_file.read(write(tmp_path, X=x, device=np.array(["a"] * 3)))
    assert recording.skipped == 2
    assert len(recording.x) == 1


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros(2)}, "needs an array 'X'"),
        ({"X": np.zeros(4), "device": np.zeros(4)}, "X must be numbers of shape"),
        ({"X": np.zeros((0, 3)), "device": np.zeros(0)}, "X must be numbers of shape"),
        ({"X": np.zeros((2, 3))}, "needs an array 'subject' or 'device'"),
        ({"X": np.zeros((2, 3)), "device": np.zeros(3)}, "device has shape [3], X has 2 rows"),
        ({"X": np.zeros((2, 3)), "device": np.zeros(2), "y": np.zeros((2, 2))}, "y has shape [2, 2]"),
        ({"X": np.zeros((2, 3)), "device": np.zeros(2), "scale": np.zeros(2)}, "scale must be [3]"),
        ({"X": np.zeros((2, 3)), "device": np.zeros(2), "y": np.zeros(2, complex)}, "y must hold integers"),
        ({"X": np.array([[None]]), "device": np.zeros(1)}, "can't be read as .npz"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_array(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = write(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        npz_file.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, X=np.zeros((50, 3)), device=np.zeros(50))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"data\.npz: can't be read"):
        npz_file.read(path)


@pytest.mark.skipif(not MOTIONSENSE.exists(), reason=f"{MOTIONSENSE} is not here")
def test_motionsense_is_read_as_it_is() -> None:
    recording = npz_file.read(MOTIONSENSE)
    assert recording.x.shape == (7321, 128, 6)
    assert recording.classes == ("downstairs", "upstairs", "walking", "jogging", "standing", "sitting")
    assert len(np.unique(recording.subject)) == 16
    assert recording.skipped == 0
