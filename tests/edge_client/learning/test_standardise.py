"""Running statistics: against numpy's, and against what sensors do to them."""

import math
from typing import Any

import numpy as np
import pytest

from edge_client.learning.standardise import CLIP, Standardiser
from pollen import cbor

LARGEST = float(np.finfo(np.float32).max)


def column(*values: float) -> Any:
    return np.array(values, np.float32)[:, np.newaxis]


def fed(values: Any, memory: int = 1000) -> Standardiser:
    """A standardiser that saw `values` [n, C] one by one."""
    one = Standardiser(values.shape[1], memory)
    for row in range(len(values)):
        one.update(values[row : row + 1])
    return one


def normal(count: int, mean: float = 0.0, deviation: float = 1.0, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(mean, deviation, (count, 1)).astype(np.float32)


def test_statistics_equal_numpys_while_memory_lasts() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 3)) * [1, 100, 1e-3] + [0, 1e4, 5]).astype(np.float32)
    standardiser = Standardiser(3, 1000)
    for start, stop in [(0, 1), (1, 2), (2, 50), (50, 500)]:
        standardiser.update(x[start:stop])
    np.testing.assert_allclose(standardiser.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(standardiser.deviation, x.std(axis=0, dtype=np.float64), rtol=1e-5)
    scaled = standardiser.transform(x)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-3)


def test_bursts_and_single_samples_give_the_same_statistics() -> None:
    x = normal(300)
    burst = Standardiser(1, 1000)
    for start in range(0, 300, 30):
        burst.update(x[start : start + 30])
    single = fed(x)
    np.testing.assert_allclose(burst.mean, single.mean, atol=1e-12)
    np.testing.assert_allclose(burst.deviation, single.deviation, rtol=1e-12)


def test_statistics_follow_a_drift_once_memory_is_full() -> None:
    standardiser = fed(np.concatenate([normal(500), normal(800, 50)]), 100)
    assert standardiser.count == 100
    assert abs(standardiser.mean[0] - 50) < 1
    assert standardiser.deviation[0] < 2


def test_a_constant_channel_becomes_zero_and_outliers_are_clipped() -> None:
    standardiser = fed(np.concatenate([np.full((100, 1), 1e6, np.float32), normal(100)], axis=1))
    # The next float32 is 0.06 off; noise of that size must not look like a signal.
    assert abs(standardiser.transform(np.array([[1e6 + 0.06, 1e9]], np.float32))[0, 0]) < 0.1
    assert standardiser.transform(np.array([[1e6, 1e9]], np.float32)).tolist() == [[0.0, CLIP]]
    assert standardiser.transform(np.array([[1e6 + 7, -1e9]], np.float32)).tolist() == [[pytest.approx(7), -CLIP]]


@pytest.mark.parametrize("spike", [1e6, 1e30, -LARGEST])
def test_a_spike_leaves_the_statistics_as_they_were(spike: float) -> None:
    standardiser = fed(normal(2000), 1000)
    before = standardiser.deviation[0]
    standardiser.update(column(spike))
    assert abs(standardiser.mean[0]) < 0.2
    assert standardiser.deviation[0] < 1.1 * before
    assert standardiser.transform(column(spike))[0, 0] == math.copysign(CLIP, spike)


@pytest.mark.parametrize("place", range(10))
def test_a_spike_among_the_first_samples_sets_no_scale(place: int) -> None:
    x = normal(300, 20, 0.5, seed=place)
    x[place] = LARGEST
    standardiser = fed(x)
    assert abs(standardiser.mean[0] - 20) < 0.5
    assert 0.4 < standardiser.deviation[0] < 1.0


def test_a_spike_on_a_channel_that_never_moved_is_a_tenth_of_its_level() -> None:
    standardiser = fed(np.full((1000, 1), 20, np.float32), 1000)
    standardiser.update(column(1e30))
    assert standardiser.mean[0] == pytest.approx(20, abs=0.01)
    assert standardiser.deviation[0] < 0.1


def test_the_first_step_of_a_quantised_sensor_is_learned_at_once() -> None:
    standardiser = fed(np.full((600, 1), 21.5, np.float32), 10_000)
    for _ in range(50):
        standardiser.update(column(21.6))
    expected = np.std(np.r_[np.full(600, 21.5), np.full(50, 21.6)])
    assert standardiser.deviation[0] == pytest.approx(expected, rel=0.1)


def test_a_level_a_thousand_deviations_off_is_reached_in_a_fraction_of_the_memory() -> None:
    standardiser = fed(np.concatenate([normal(2000), normal(500, 1000)]), 2000)
    assert 2 < abs(standardiser.transform(column(1000))[0, 0]) < CLIP or standardiser.mean[0] > 500
    assert standardiser.deviation[0] > 100


def test_shortening_lets_new_samples_count_more() -> None:
    slow, quick = (fed(normal(5000), 5000) for _ in range(2))
    quick.shorten(100)
    assert quick.count == 100
    for value in normal(200, 5):
        slow.update(value[np.newaxis])
        quick.update(value[np.newaxis])
    assert slow.mean[0] < 0.5
    assert quick.mean[0] > 3
    quick.shorten(0)
    assert quick.count == 10, "below that the statistics mean nothing"


def test_inverse_gives_the_values_back() -> None:
    x = np.concatenate([normal(100, 1e4, 3), normal(100, 0, 1e-3)], axis=1)
    scaling = fed(x).scaling
    np.testing.assert_allclose(scaling.inverse(scaling.apply(x)), x, rtol=1e-6, atol=1e-9)


def test_inverse_of_huge_forecasts_is_finite() -> None:
    scaling = fed(np.array([[LARGEST], [-LARGEST]] * 20, np.float32)).scaling
    assert np.isfinite(scaling.inverse(np.full((1, 1), LARGEST, np.float32))).all()


def test_a_scaling_stays_that_of_its_moment() -> None:
    standardiser = fed(normal(100))
    scaling = standardiser.scaling
    before = scaling.apply(column(1))
    standardiser.update(normal(100, 50))
    assert scaling.apply(column(1)).tolist() == before.tolist()
    assert standardiser.scaling is not scaling


def test_statistics_survive_a_restart() -> None:
    first = fed(normal(500, 20, 3), 200)
    second = Standardiser(1, 200)
    second.restore(cbor.decode(cbor.encode(first.state()), 10**6))
    for value in normal(100, 30):
        for one in (first, second):
            one.update(value[np.newaxis])
    assert (first.mean, first.deviation, first.count) == (second.mean, second.deviation, second.count)


def test_a_restart_among_the_first_samples_begins_anew() -> None:
    second = Standardiser(1, 200)
    second.restore(fed(normal(5)).state())
    assert second.count == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": [0.0, 0.0]},
        {"variance": []},
        {"variance": [-1.0]},
        {"mean": [float("nan")]},
        {"mean": [1e300]},
        {"variance": [float("inf")]},
        {"mean": "x"},
        {"mean": [None]},
        {"count": -1},
        {"count": 3},
        {"count": float("inf")},
        {"count": None},
        {"mean": {"a": 1}},
    ],
)
def test_damaged_statistics_are_refused_without_harm(damage: dict[str, Any]) -> None:
    good = fed(normal(50)).state()
    standardiser = fed(normal(50, 7))
    before = standardiser.state()
    with pytest.raises(ValueError, match=r"."):
        standardiser.restore(good | damage)
    assert standardiser.state() == before
    with pytest.raises(ValueError, match="no state"):
        standardiser.restore({})
    standardiser.restore(good)
    assert standardiser.state() == good


def test_statistics_of_hostile_values_stay_finite() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.strategies")
    finite = strategies.floats(allow_nan=False, allow_infinity=False, width=32)
    bursts = strategies.lists(strategies.lists(finite, min_size=1, max_size=5), max_size=40)

    @hypothesis.given(bursts, strategies.integers(10, 50))  # type: ignore[untyped-decorator]
    @hypothesis.settings(max_examples=200, deadline=None)  # type: ignore[untyped-decorator]
    def check(bursts: list[list[float]], memory: int) -> None:
        standardiser = Standardiser(1, memory)
        with np.errstate(all="raise", under="ignore"):
            for burst in bursts:
                standardiser.update(column(*burst))
                scaled = standardiser.transform(column(*burst))
                assert np.abs(scaled).max() <= CLIP
                assert np.isfinite(standardiser.scaling.inverse(scaled)).all()
        state = standardiser.state()
        assert state["count"] <= memory
        Standardiser(1, memory).restore(state)

    check()
