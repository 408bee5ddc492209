"""ADWIN2 by hand, and beside river's."""

import math
import random
from typing import Any

import numpy as np
import pytest

from edge_client.learning.drift.adwin import ROWS, Adwin


def _stream(seed: int) -> list[float]:
    """Stretches of another level, spread and kind each."""
    chance = random.Random(seed)
    values = []
    for _ in range(chance.randint(1, 6)):
        level, spread, kind = chance.random(), chance.choice([0.0, 0.01, 0.1, 0.5]), chance.choice("gbu")
        for _ in range(chance.randint(5, 1000)):
            drawn = {"g": chance.gauss(level, spread), "b": float(chance.random() < level), "u": chance.random()}
            values.append(drawn[kind])
    return values


def _agree(values: list[float], **settings: Any) -> list[int]:
    """Both find changes at the same places, and have the same window before; returns these places."""
    drift = pytest.importorskip("river.drift")
    theirs = drift.ADWIN(**settings)
    ours, found = Adwin(**settings), []
    for place, value in enumerate(values):
        changed = ours.update(value) != 0
        theirs.update(value)
        assert changed == theirs.drift_detected, place
        if changed:
            found.append(place)
            ours = Adwin(**settings)  # river forgets all of its window at the next value
        else:
            assert ours.width == theirs.width
            squares = theirs.variance  # river leaves the division by the width to its users
            assert math.isclose(ours.variance * ours.width, squares, rel_tol=1e-6, abs_tol=1e-6)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_changes_are_found_where_river_finds_them(seed: int) -> None:
    chance = random.Random(seed)
    _agree(
        _stream(seed),
        delta=chance.choice([0.002, 0.05, 0.3]),
        clock=chance.choice([1, 4, 32]),
        max_buckets=chance.choice([2, 5, 8]),
        min_window_length=chance.choice([1, 5, 10]),
        grace_period=chance.choice([10, 30]),
    )


def test_rivers_own_example_is_found_at_the_same_value() -> None:
    chance = random.Random(12345)
    values = chance.choices([0, 1], k=1000) + chance.choices(range(4, 8), k=1000)
    assert _agree([float(value) for value in values]) == [1023]


def test_any_stream_of_errors_is_judged_as_by_river() -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    stretch = st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.integers(1, 300))

    @given(st.lists(stretch, min_size=1, max_size=4), st.integers(0, 2**32), st.sampled_from([1, 8, 32]))
    @settings(max_examples=40, deadline=None)
    def judged_alike(stretches: list[tuple[float, float, int]], seed: int, clock: int) -> None:
        chance = random.Random(seed)
        _agree([abs(chance.gauss(level, spread)) for level, spread, n in stretches for _ in range(n)], clock=clock)

    judged_alike()


def test_the_cut_by_hand() -> None:
    # 64 zeros, then ones: buckets' borders are at 32, 48, …; n0 = 64 is one of them while they stay unmerged.
    window = Adwin(0.002, clock=1, max_buckets=64, min_window_length=1)
    assert [window.update(0.0) for _ in range(64)] == [0.0] * 64
    ones = 0
    while not (rise := window.update(1.0)):
        ones += 1
    ones += 1
    width, share = 64 + ones, ones / (64 + ones)
    confidence = math.log(2 * math.log(width) / 0.002)
    inverse = 1 / 64 + 1 / ones
    bound = math.sqrt(2 * inverse * share * (1 - share) * confidence) + 2 / 3 * inverse * confidence
    assert rise > bound
    assert rise == pytest.approx(1.0)
    assert window.mean > share  # the older part is shorter now


def test_the_sign_says_whether_the_mean_rose_or_fell() -> None:
    for level, sign in ((0.9, 1), (0.1, -1)):
        window, chance = Adwin(), random.Random(0)
        for _ in range(500):
            assert window.update(chance.gauss(0.5, 0.05)) == 0
        rises = [window.update(chance.gauss(level, 0.05)) for _ in range(200)]
        found = [rise for rise in rises if rise]
        assert found
        assert all(rise * sign > 0 for rise in found)
        assert window.mean == pytest.approx(level, abs=0.05)  # the newer part stays


def test_mean_and_variance_are_those_of_the_window() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 3000)
    window = Adwin()
    for value in values.tolist():
        window.update(value)
    assert window.width == 3000
    assert window.mean == pytest.approx(values.mean())
    assert window.variance == pytest.approx(values.var())


def test_a_steady_stream_is_rarely_cut() -> None:
    chance, cuts = random.Random(3), 0
    for _ in range(10):
        window = Adwin()
        cuts += sum(window.update(chance.random()) != 0 for _ in range(5000))
    assert cuts <= 1


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    window = Adwin(max_buckets=1)  # at most 2^16 - 1 values
    for index in range(2**ROWS + 5000):
        window.update(float(index % 2))
    buckets = sum(len(row) // 2 for row in window.state()["rows"])
    assert buckets <= ROWS
    assert 2**15 <= window.width < 2**ROWS
    assert window.mean == pytest.approx(0.5, abs=1e-3)
    assert window.variance == pytest.approx(0.25, abs=1e-3)


def test_a_restored_window_goes_on_as_the_first() -> None:
    values = _stream(5)
    first, second = Adwin(), Adwin()
    for value in values[:700]:
        first.update(value)
    second.restore(first.state())
    assert second.width == first.width
    assert [first.update(value) != 0 for value in values[700:]] == [second.update(value) != 0 for value in values[700:]]


def test_rows_without_buckets_do_no_harm() -> None:
    window = Adwin(clock=1)
    window.restore({"ticks": 0, "rows": [[0.0, 0.0] * 5, [], [0.0, 0.0] * 5, []]})
    assert window.width == 25
    assert any(window.update(1.0) for _ in range(50))


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"rows": [], "ticks": 0},
        {"rows": [[0.0]], "ticks": 0},
        {"rows": [[0.0, -1.0]], "ticks": 0},
        {"rows": [[0.0, float("nan")]], "ticks": 0},
        {"rows": [[1e300, 0.0]], "ticks": 0},
        {"rows": [[0.0, 0.0] * 6], "ticks": 0},
        {"rows": [[0.0, 0.0]] * (ROWS + 1), "ticks": 0},
        {"rows": [[]], "ticks": 32},
        {"rows": [[]], "ticks": True},
        {"rows": "none", "ticks": 0},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(state: Any) -> None:
    window = Adwin()
    for value in (0.1, 0.2, 0.3):
        window.update(value)
    before = window.state()
    with pytest.raises(ValueError, match=r"drift|ticks"):
        window.restore(state)
    assert window.state() == before
