from pathlib import Path

import numpy as np
import pytest

from pollen.demo import split
from pollen.demo.recording import Array, DataError, Recording

PATH = Path("data.npz")


def recording(rows_of: dict[str, int], *, y: Array | None = None, classes: tuple[str, ...] = ()) -> Recording:
    subject = np.array([name for name, rows in rows_of.items() for _ in range(rows)])
    # Each row tells which it is, in two channels of very different size.
    numbers = np.arange(len(subject), dtype=np.float32)
    x = np.stack([numbers, 1000 - 3 * numbers], axis=1)
    return Recording(x, y, subject, ("a", "b"), classes)


def rows_in(part: split.Part, original: Recording, training: list[int]) -> list[int]:
    """The original row numbers, recovered by undoing the standardisation."""
    values = original.x[training, 0].astype(np.float64)
    return [round(float(value) * values.std() + values.mean()) for value in part.x[:, 0]]


def test_the_last_rows_of_every_subject_are_held_out() -> None:
    original = recording({"p": 100, "q": 60})
    data = split.split(PATH, original, 2, seed=1)
    training = [*range(85), *range(100, 151)]
    assert rows_in(data.parts[0], original, training) == list(range(85))
    assert rows_in(data.parts[1], original, training) == list(range(100, 151))
    assert [rows_in(part, original, training) for part in data.holdout] == [
        list(range(85, 100)),
        list(range(151, 160)),
    ]


def test_training_rows_have_mean_0_and_deviation_1_in_every_channel() -> None:
    data = split.split(PATH, recording({"p": 80, "q": 90}), 2, seed=1)
    rows = np.concatenate([part.x for part in data.parts])
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-5)


def test_a_channel_that_never_changes_becomes_zero() -> None:
    constant = Recording(np.full((120, 1), 7, np.float32), None, np.array(["p", "q"] * 60), ("a",))
    data = split.split(PATH, constant, 2, seed=1)
    assert all(not part.x.any() for part in data.parts)


def test_subjects_are_shared_out_evenly_by_rows() -> None:
    data = split.split(PATH, recording({"a": 300, "b": 100, "c": 100, "d": 100}), 2, seed=1)
    assert [part.subjects for part in data.parts] == [("a",), ("b", "c", "d")]


def test_a_regression_target_is_standardised_and_classes_are_not() -> None:
    y = np.linspace(100, 200, 120).astype(np.float32)
    regression = split.split(PATH, recording({"p": 60, "q": 60}, y=y), 2, seed=1)
    targets = np.concatenate([part.y for part in regression.parts if part.y is not None])
    assert abs(float(targets.mean())) < 1e-5
    labels = np.arange(120, dtype=np.int32) % 3
    classes = split.split(PATH, recording({"p": 60, "q": 60}, y=labels, classes=("x", "y", "z")), 2, seed=1)
    assert classes.parts[0].y is not None
    assert classes.parts[0].y.dtype == np.int32
    assert set(classes.parts[0].y.tolist()) == {0, 1, 2}


def sorted_by_class() -> Recording:
    labels = np.repeat([0, 1, 2, 0, 1, 2], 40).astype(np.int32)
    return recording({"p": 120, "q": 120}, y=labels, classes=("x", "y", "z"))


def test_a_recording_sorted_by_class_still_has_every_class_in_its_holdout() -> None:
    data = split.split(PATH, sorted_by_class(), 2, seed=1)
    for part in data.holdout:
        assert part.y is not None
        assert np.bincount(part.y).tolist() == [6, 6, 6]


def test_classes_are_replayed_shuffled_each_row_with_its_own_label() -> None:
    original = sorted_by_class()
    data = split.split(PATH, original, 2, seed=1)
    labels = original.y
    assert labels is not None
    held = {row for start in range(0, 240, 40) for row in range(start + 34, start + 40)}
    training = [row for row in range(240) if row not in held]
    rows = rows_in(data.parts[0], original, training)
    assert sorted(rows) == [row for row in training if row < 120]
    assert rows != sorted(rows)
    assert data.parts[0].y is not None
    assert data.parts[0].y.tolist() == labels[rows].tolist()


def test_a_regression_is_replayed_in_the_order_it_was_recorded() -> None:
    y = np.linspace(0, 1, 120).astype(np.float32)
    data = split.split(PATH, recording({"p": 60, "q": 60}, y=y), 2, seed=1)
    assert data.parts[0].y is not None
    assert (np.diff(data.parts[0].y) > 0).all()


def test_fewer_subjects_than_devices_is_an_error_that_says_what_works() -> None:
    with pytest.raises(DataError, match=r"data\.npz: 2 subjects, fewer than 3 devices; use --devices 2"):
        split.split(PATH, recording({"p": 60, "q": 60}), 3, seed=1)


def test_a_device_with_too_few_rows_is_an_error_that_names_its_subject() -> None:
    with pytest.raises(DataError, match=r"subject q has 9 rows to learn from"):
        split.split(PATH, recording({"p": 60, "q": 10}), 2, seed=1)


def test_a_forecast_holdout_never_joins_two_subjects() -> None:
    data = split.split(PATH, recording({"p": 100, "q": 100}), 2, seed=1)
    x, y = split.holdout_examples(data, 4)
    assert x.shape == (22, 4, 2)
    assert y.shape == (22, 2)
    steps = np.diff(np.concatenate([x, y[:, None]], axis=1)[:, :, 0], axis=1)
    np.testing.assert_allclose(steps, steps[0, 0], rtol=1e-3)


def test_a_part_is_written_as_the_replay_sensor_reads_it(tmp_path: Path) -> None:
    labels = np.arange(120, dtype=np.int32) % 2
    data = split.split(PATH, recording({"p": 60, "q": 60}, y=labels, classes=("x", "y")), 2, seed=1)
    split.write_part(tmp_path / "part.npz", data.parts[0], ("a", "b"))
    with np.load(tmp_path / "part.npz", allow_pickle=False) as arrays:
        assert arrays["X"].dtype == np.float32
        assert arrays["y"].dtype.kind == "i"
        assert arrays["channels"].tolist() == ["a", "b"]


@pytest.mark.parametrize("name", ["missing.csv", "data.txt"])
def test_a_file_that_is_missing_or_of_another_kind_is_refused_by_name(tmp_path: Path, name: str) -> None:
    if name == "data.txt":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=name):
        split.read(tmp_path / name)
