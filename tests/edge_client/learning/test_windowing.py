"""Windows and labels, by hand-computed values."""

from typing import Any

import numpy as np
import pytest

from edge_client.learning.windowing import Windower
from pollen.errors import BundleError
from pollen.manifest import Loss, Manifest
from tests.pollen.manifests import manifest as plain


def manifest(
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    labels: tuple[int, ...],
    loss: str = "mse",
    dtype: str = "float32",
    *,
    below: int = 0,
) -> Manifest:
    return plain(
        input_shape=inputs,
        input_dtype="int32" if below else "float32",
        input_below=below,
        output_shape=outputs,
        label_shape=labels,
        label_dtype=dtype,
        loss=Loss(loss, from_logits=False),
    )


def rows(*values: float) -> Any:
    return np.array([[value, -value] for value in values], np.float32)


def test_a_forecast_pairs_the_last_t_samples_with_the_next() -> None:
    windower = Windower(manifest((3, 2), (2,), (2,)), "next", 2)
    examples = [example for value in range(1, 7) for example in windower.add(rows(value), None)]
    assert [example.x.tolist() for example in examples] == [
        rows(1, 2, 3).tolist(), rows(2, 3, 4).tolist(), rows(3, 4, 5).tolist(),
    ]  # fmt: skip
    assert [example.y.tolist() for example in examples] == [[4, -4], [5, -5], [6, -6]]
    assert [example.last.tolist() for example in examples] == [[3, -3], [4, -4], [5, -5]]


def test_a_burst_gives_the_same_forecasts_as_single_samples() -> None:
    windower = Windower(manifest((3, 2), (2,), (2,)), "next", 2)
    examples = windower.add(rows(1, 2, 3, 4, 5), None)
    assert [example.y.tolist() for example in examples] == [[4, -4], [5, -5]]


def test_a_flat_model_gets_its_window_flat() -> None:
    windower = Windower(manifest((4,), (2,), (2,)), "next", 2)
    (example,) = windower.add(rows(1, 2, 3), None)
    assert example.x.tolist() == [1, -1, 2, -2]


def test_hop_spaces_the_windows() -> None:
    windower = Windower(manifest((2, 2), (2,), (2,)), "next", 2, hop=3)
    examples = windower.add(rows(*range(1, 10)), None)
    assert [example.y[0] for example in examples] == [3, 6, 9]


def test_labelled_bursts_give_one_window_each() -> None:
    windower = Windower(manifest((2, 2), (3,), (), "sparse_categorical_crossentropy", "int32"), "label", 2)
    first = windower.add(rows(1, 2), 2)
    second = windower.add(rows(3, 4), 0)
    assert [(example.x.tolist(), int(example.y)) for example in first + second] == [
        (rows(1, 2).tolist(), 2), (rows(3, 4).tolist(), 0),
    ]  # fmt: skip


def test_single_labelled_samples_give_a_window_at_every_one() -> None:
    windower = Windower(manifest((2, 2), (1,), (1,)), "label", 2)
    examples = [example for value in range(1, 5) for example in windower.add(rows(value), value / 2)]
    assert [example.y.tolist() for example in examples] == [[1.0], [1.5], [2.0]]
    assert examples[0].x.tolist() == rows(1, 2).tolist()


def test_a_gap_starts_a_new_window() -> None:
    windower = Windower(manifest((2, 2), (2,), (2,)), "next", 2)
    windower.add(rows(1, 2), None)
    windower.clear()
    assert windower.add(rows(3, 4), None) == []
    (example,) = windower.add(rows(5), None)
    assert example.x.tolist() == rows(3, 4).tolist()


def test_labels_take_the_form_the_loss_wants() -> None:
    one_hot = Windower(manifest((1, 2), (3,), (3,), "categorical_crossentropy"), "label", 2)
    assert one_hot.add(rows(1), 1)[0].y.tolist() == [0, 1, 0]
    binary = Windower(manifest((1, 2), (1,), (1,), "binary_crossentropy"), "label", 2)
    assert binary.add(rows(1), 1)[0].y.tolist() == [1.0]


@pytest.mark.parametrize("label", [3, -1, 0.5])
def test_a_label_that_is_no_class_is_left_out_and_counted(label: float) -> None:
    windower = Windower(manifest((1, 2), (3,), (), "sparse_categorical_crossentropy", "int32"), "label", 2)
    assert windower.add(rows(1), label) == []
    assert windower.unknown_labels == 1


def test_a_model_of_integers_gets_its_window_rounded() -> None:
    windower = Windower(manifest((2, 1), (3,), (), "sparse_categorical_crossentropy", "int32", below=6), "label", 1)
    (example,) = windower.add(np.array([[0.0005], [4.9995]], np.float32), 1)
    assert example.x.dtype == np.int32
    assert example.x.tolist() == [[0], [5]]


@pytest.mark.parametrize("value", [-1.0, 6.0, 2.5, 2.002, 1e10, -1e30])
def test_a_window_with_what_is_no_input_of_the_model_is_left_out_and_counted(value: float) -> None:
    windower = Windower(manifest((2, 1), (3,), (), "sparse_categorical_crossentropy", "int32", below=6), "label", 1)
    assert windower.add(np.array([[3.0], [value]], np.float32), 1) == []
    assert windower.unknown_inputs == 1
    assert windower.unknown_labels == 0
    (example,) = windower.add(np.array([[3.0], [5.0]], np.float32), 1)
    assert example.x.tolist() == [[3], [5]]


def test_a_forecast_from_integers_goes_on_when_the_window_has_passed_a_wrong_one() -> None:
    windower = Windower(manifest((2,), (1,), (1,), below=10), "next", 1)
    examples = windower.add(np.array([[1], [2], [3.5], [4], [5], [6]], np.float32), None)
    assert [(example.x.tolist(), example.y.tolist()) for example in examples] == [([1, 2], [3.5]), ([4, 5], [6])]
    assert windower.unknown_inputs == 2


def test_a_window_is_a_copy() -> None:
    windower = Windower(manifest((2, 2), (2,), (2,)), "next", 2)
    (example,) = windower.add(rows(1, 2, 3), None)
    windower.add(rows(9, 9, 9), None)
    assert example.x.tolist() == rows(1, 2).tolist()


@pytest.mark.parametrize(
    ("shape", "labels", "target", "error"),
    [
        ((3, 5), (2,), "next", "sensor gives 2 channels"),
        ((5,), (2,), "next", "sensor gives 2 channels"),
        ((3, 2), (3,), "next", "float32 \\[2\\]"),
        ((3, 2), (2, 2), "label", "one label"),
    ],
)
def test_a_model_that_doesnt_fit_is_refused(
    shape: tuple[int, ...], labels: tuple[int, ...], target: Any, error: str
) -> None:
    with pytest.raises(BundleError, match=error):
        Windower(manifest(shape, labels, labels), target, 2)
