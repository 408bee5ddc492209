"""The Page-Hinkley test by hand, and beside river's."""

import random
from typing import Any

import pytest

from edge_client.learning.drift.page_hinkley import PageHinkley


def _agree(values: list[float], threshold: float, **settings: float) -> list[int]:
    drift = pytest.importorskip("river.drift")
    names = {"tolerance": "delta", "fading": "alpha", "min_instances": "min_instances"}
    theirs = drift.PageHinkley(
        threshold=threshold, mode="up", **{names[name]: value for name, value in settings.items()}
    )
    ours: Any = PageHinkley(threshold, **settings)  # type: ignore[arg-type]
    found = []
    for place, value in enumerate(values):
        theirs.update(value)
        risen = ours.update(value)
        assert risen == theirs.drift_detected, place
        found += [place] * risen
    return found


@pytest.mark.parametrize("seed", range(12))
def test_rises_are_found_where_river_finds_them(seed: int) -> None:
    chance = random.Random(seed)
    values = [
        chance.gauss(level, spread)
        for level, spread in [(chance.random(), chance.choice([0.01, 0.3])) for _ in range(5)]
        for _ in range(chance.randint(5, 800))
    ]
    _agree(
        values,
        chance.choice([1.0, 5.0, 50.0]),
        tolerance=chance.choice([0.0, 0.005, 0.1]),
        fading=chance.choice([1.0, 0.9999, 0.99]),
        min_instances=chance.choice([1, 30]),
    )


def test_any_stream_is_judged_as_by_river() -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @given(st.lists(st.floats(0, 100), max_size=200), st.floats(0.1, 50))
    @settings(max_examples=100, deadline=None)
    def judged_alike(values: list[float], threshold: float) -> None:
        _agree(values, threshold, min_instances=5)

    judged_alike()


def test_the_sum_by_hand() -> None:
    # x: 1 1 4 4; x̄: 1 1 2 2.5; m without fading and tolerance: 0 0 2 3.5; M = 0.
    test = PageHinkley(3.0, tolerance=0.0, fading=1.0, min_instances=1)
    assert [test.update(value) for value in (1.0, 1.0, 4.0, 4.0)] == [False, False, False, True]
    # The tolerance takes 0.5 each time: m = -0.5 -1 0.5 1.5, M = -1, so m - M = 2.5 at the fourth, 4 at the fifth,
    # where x̄ = 2.8.
    test = PageHinkley(2.5, tolerance=0.5, fading=1.0, min_instances=1)
    assert [test.update(value) for value in (1.0, 1.0, 4.0, 4.0, 4.0)] == [False] * 4 + [True]


def test_a_fall_is_no_rise() -> None:
    test = PageHinkley(5.0)
    assert not any(test.update(value) for value in [1.0] * 200 + [0.0] * 500)


def test_it_starts_anew_after_a_detection() -> None:
    test = PageHinkley(5.0)
    found = [place for place, value in enumerate([0.0] * 100 + [1.0] * 100) if test.update(value)]
    assert len(found) == 1
    assert test.state()["count"] == 199 - found[0]


def test_a_restored_test_goes_on_as_the_first() -> None:
    chance = random.Random(1)
    first, second = PageHinkley(5.0), PageHinkley(5.0)
    for _ in range(100):
        first.update(chance.random())
    second.restore(first.state())
    values = [chance.uniform(0, 2) for _ in range(300)]
    assert [first.update(value) for value in values] == [second.update(value) for value in values]


@pytest.mark.parametrize(
    "state",
    [None, [], {}, {"count": -1}, {"count": 1, "mean": float("inf"), "sum": 0.0, "least": 0.0}, {"count": 1.5}],
)
def test_a_damaged_state_is_refused_and_changes_nothing(state: Any) -> None:
    test = PageHinkley()
    test.update(3.0)
    before = test.state()
    with pytest.raises(ValueError, match=r"no whole number|no finite number"):
        test.restore(state)
    assert test.state() == before
