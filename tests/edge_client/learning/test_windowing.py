"""Windows and truths, by hand-computed values."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from edge_client.learning.standardise import Scaling
from edge_client.learning.windowing import Event, Labeller, Windower
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner
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


CLASSES = manifest((2, 2), (3,), (), "sparse_categorical_crossentropy", "int32")


def windower(shape: Manifest, target: Any = "next", channels: int = 2, **settings: Any) -> Windower:
    return Windower(shape, Learner(target=target, **settings), channels)


def rows(*values: float) -> Any:
    return np.array([[value, -value] for value in values], np.float32)


def add(one: Windower, values: Any, *, labelled: bool = False, scaling: Scaling | None = None) -> list[Event]:
    return one.add(values, Sample(0, 0.0, 0.0, values, None), scaling, labelled=labelled)


def each(one: Windower, values: Iterable[float]) -> list[tuple[Any, Any]]:
    """What each single sample tells, first column only: (x, None) of a window that is complete, (x, y) for a truth."""
    told = []
    for value in values:
        for window, y in add(one, rows(value)):
            told.append((window.x.reshape(-1, 2)[:, 0].tolist(), None if y is None else float(y[0])))
    return told


def test_a_forecasts_truth_is_the_next_sample() -> None:
    told = each(windower(manifest((3, 2), (2,), (2,))), range(1, 6))
    assert told == [([1, 2, 3], None), ([1, 2, 3], 4), ([2, 3, 4], None), ([2, 3, 4], 5), ([3, 4, 5], None)]


def test_a_burst_tells_the_same_as_single_samples() -> None:
    shape = manifest((3, 2), (2,), (2,))
    burst = add(windower(shape), rows(1, 2, 3, 4, 5))
    told = [(window.x[:, 0].tolist(), None if y is None else float(y[0])) for window, y in burst]
    assert told == each(windower(shape), range(1, 6))


def test_horizon_3_and_hop_2_by_hand() -> None:
    one = windower(manifest((2, 2), (2,), (2,)), horizon=3, hop=2)
    assert each(one, range(1, 10)) == [
        ([1, 2], None),  # at 2; its truth comes at 5
        ([3, 4], None),  # at 4
        ([1, 2], 5),
        ([5, 6], None),  # at 6
        ([3, 4], 7),
        ([7, 8], None),  # at 8
        ([5, 6], 9),
    ]


def test_hop_spaces_the_windows() -> None:
    told = each(windower(manifest((2, 2), (2,), (2,)), hop=3), range(1, 10))
    assert [y for _, y in told if y is not None] == [3, 6, 9]


def test_after_a_gap_no_truth_comes_for_the_windows_before_it() -> None:
    one = windower(manifest((2, 2), (2,), (2,)), horizon=3)
    assert each(one, [1, 2, 3]) == [([1, 2], None), ([2, 3], None)]
    one.clear()
    assert each(one, [11, 12, 13, 14]) == [([11, 12], None), ([12, 13], None), ([13, 14], None)]
    assert each(one, [15])[0] == ([11, 12], 15)


def test_a_flat_model_gets_its_window_flat() -> None:
    (window, _), *_ = add(windower(manifest((4,), (2,), (2,))), rows(1, 2, 3))
    assert window.x.tolist() == [1, -1, 2, -2]
    assert window.last.tolist() == [2, -2]


def test_window_and_truth_are_scaled_by_what_was_known_before_the_truth() -> None:
    one = windower(manifest((2, 2), (2,), (2,)))
    scaling, later = (Scaling(np.full(2, mean), np.full(2, 2.0)) for mean in (1.0, 100.0))
    add(one, rows(1), scaling=scaling)
    add(one, rows(3), scaling=scaling)
    (window, y), *_ = add(one, rows(7), scaling=later)
    assert window.x.tolist() == [[0.0, -1.0], [1.0, -2.0]]
    assert y is not None
    assert y.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("shape", [(2, 2), (4,)])
def test_the_truth_about_an_autoencoders_window_is_itself(shape: tuple[int, ...]) -> None:
    one = windower(manifest((2, 2), shape, shape), "self", hop=2)
    events = add(one, rows(1, 2, 3, 4))
    told = [None if y is None else y.ravel().tolist() for _, y in events]
    assert told == [None, [1, -1, 2, -2], None, [3, -3, 4, -4]]
    assert all(y is None or y.shape == shape for _, y in events)


def test_an_autoencoder_of_integers_rebuilds_them_as_floats() -> None:
    one = windower(manifest((2, 2), (2, 2), (2, 2), below=9), "self")
    (window, _), (_, y) = add(one, np.array([[1, 2], [3, 4]], np.float32))
    assert window.x.dtype == np.int32
    assert y is not None
    assert (y.dtype, y.tolist()) == (np.float32, [[1, 2], [3, 4]])


def test_bursts_of_labelled_readings_give_one_window_each() -> None:
    one = windower(CLASSES, "label")
    events = add(one, rows(1, 2), labelled=True) + add(one, rows(3, 4), labelled=True)
    assert [window.x.tolist() for window, _ in events] == [rows(1, 2).tolist(), rows(3, 4).tolist()]
    assert [y for _, y in events] == [None, None]


def test_a_burst_of_several_windows_lengths_gives_its_last() -> None:
    one = windower(CLASSES, "label")
    for _ in range(2):
        ((window, _),) = add(one, rows(1, 2, 3, 4, 5, 6), labelled=True)
        assert window.x.tolist() == rows(5, 6).tolist()


def test_a_fifo_that_is_no_whole_window_gives_one_when_a_whole_is_new() -> None:
    one = windower(manifest((4, 2), (3,), (), "sparse_categorical_crossentropy", "int32"), "label")
    events = [add(one, rows(*range(start, start + 3))) for start in range(1, 16, 3)]
    assert [len(found) for found in events] == [0, 1, 0, 1, 0]
    assert events[1][0][0].x[:, 0].tolist() == [3, 4, 5, 6]


def test_single_readings_give_a_window_at_every_one() -> None:
    one = windower(manifest((2, 2), (1,), (1,)), "label")
    events = [event for value in range(1, 5) for event in add(one, rows(value), labelled=True)]
    assert [window.x[0, 0] for window, _ in events] == [1, 2, 3]


def test_labels_between_two_windows_get_a_window_of_their_own() -> None:
    one = windower(CLASSES, "label", hop=5)
    ends = []
    for value in range(1, 23):
        ends += [int(window.x[-1, 0]) for window, _ in add(one, rows(value), labelled=value % 7 == 0)]
    assert ends == [2, 7, 12, 14, 19, 21]


def test_a_gap_starts_a_new_window() -> None:
    one = windower(manifest((2, 2), (2,), (2,)))
    assert each(one, [1, 2]) == [([1, 2], None)]
    one.clear()
    assert each(one, [3, 4, 5]) == [([3, 4], None), ([3, 4], 5), ([4, 5], None)]


def test_labels_take_the_form_the_loss_wants() -> None:
    one_hot = Labeller(manifest((1, 2), (3,), (3,), "categorical_crossentropy")).label(1)
    binary = Labeller(manifest((1, 2), (1,), (1,), "binary_crossentropy")).label(1)
    assert one_hot is not None
    assert binary is not None
    assert (one_hot.tolist(), binary.tolist()) == ([0, 1, 0], [1.0])


@pytest.mark.parametrize("label", [3, -1, 0.5, float("inf"), float("nan"), 1e300])
def test_a_label_that_is_no_class_has_no_form(label: float) -> None:
    assert Labeller(CLASSES).label(label) is None


@pytest.mark.parametrize("label", [1e39, -1e300, float("inf"), float("nan"), 10**400])
def test_a_target_that_no_float32_can_hold_has_no_form(label: float) -> None:
    labeller = Labeller(manifest((1, 2), (1,), (1,)))
    assert labeller.label(label) is None
    target = labeller.label(-1.5e38)
    assert target is not None
    assert target.tolist() == [pytest.approx(-1.5e38)]


def test_a_model_of_integers_gets_its_window_rounded() -> None:
    one = windower(manifest((2, 1), (3,), (), "sparse_categorical_crossentropy", "int32", below=6), "label", 1)
    ((window, _),) = add(one, np.array([[0.0005], [4.9995]], np.float32))
    assert window.x.dtype == np.int32
    assert window.x.tolist() == [[0], [5]]


@pytest.mark.parametrize("value", [-1.0, 6.0, 2.5, 2.002, 1e10, -1e30])
def test_a_window_with_what_is_no_input_of_the_model_is_left_out_and_counted(value: float) -> None:
    one = windower(manifest((2, 1), (3,), (), "sparse_categorical_crossentropy", "int32", below=6), "label", 1)
    assert add(one, np.array([[3.0], [value]], np.float32)) == []
    assert one.unknown_inputs == 1
    ((window, _),) = add(one, np.array([[3.0], [5.0]], np.float32))
    assert window.x.tolist() == [[3], [5]]


def test_a_forecast_from_integers_goes_on_when_the_window_has_passed_a_wrong_one() -> None:
    one = windower(manifest((2,), (1,), (1,), below=10), channels=1)
    events = add(one, np.array([[1], [2], [3.5], [4], [5], [6]], np.float32))
    told = [(window.x.tolist(), y.tolist()) for window, y in events if y is not None]
    assert told == [([1, 2], [3.5]), ([4, 5], [6])]
    assert one.unknown_inputs == 2


def test_a_window_is_a_copy_however_many_samples_follow() -> None:
    one = windower(manifest((2, 2), (2,), (2,)))
    (window, _), *_ = add(one, rows(1, 2, 3))
    for _ in range(100):
        add(one, rows(9, 9, 9))
    assert window.x.tolist() == rows(1, 2).tolist()


def test_windows_are_the_newest_samples_wherever_they_lie_in_memory() -> None:
    rng = np.random.default_rng(0)
    one = windower(manifest((7, 2), (1,), (1,)), "label", hop=1)
    stream = rng.normal(size=(2000, 2)).astype(np.float32)
    at = 0
    while at < len(stream):
        count = int(rng.integers(1, 30))
        part = stream[at : at + count]
        at += len(part)
        if len(part) % 7 == 0 and len(part) > 1:
            one.clear()
        for window, _ in add(one, part):
            np.testing.assert_array_equal(window.x, stream[at - 7 : at])


@pytest.mark.parametrize(
    ("shape", "labels", "target", "error"),
    [
        ((3, 5), (2,), "next", "sensor gives 2 channels"),
        ((5,), (2,), "next", "sensor gives 2 channels"),
        ((3, 2), (3,), "next", "float32 \\[2\\]"),
        ((3, 2), (2, 2), "label", "one label"),
        ((3, 2), (2, 2), "self", "float32 \\[3, 2\\] or \\[6\\]"),
    ],
)
def test_a_model_that_doesnt_fit_is_refused(
    shape: tuple[int, ...], labels: tuple[int, ...], target: Any, error: str
) -> None:
    with pytest.raises(BundleError, match=error):
        windower(manifest(shape, labels, labels), target)


def test_a_model_of_the_label_channel_alone_is_refused() -> None:
    with pytest.raises(BundleError, match="sensor gives 0 channels"):
        windower(manifest((3, 2), (2,), (2,)), channels=0)
