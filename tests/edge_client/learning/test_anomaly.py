"""Anomaly likelihood by hand, and as properties."""

import math
import random
from typing import Any

import cbor2
import pytest

from edge_client.learning.anomaly import WARM_UP, AnomalyScore
from edge_client.settings import Anomaly


def _score(**settings: Any) -> AnomalyScore:
    return AnomalyScore(Anomaly(enabled=True, **settings))


def test_the_probability_by_hand() -> None:
    # 0 and 2 in turns: μ = 1, σ = 1; a hundred and first error of 6 makes them 1 + 5/101 and √(2·100·25/101² …).
    score = _score(recent=1, memory=1000)
    for place in range(100):
        found = score.update(float(2 * (place % 2)))
    assert found[0] == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)))  # the last error was 2: one deviation up
    assert found[0] == pytest.approx(0.158655, abs=1e-6)
    mean = (100 * 1.0 + 6.0) / 101
    variance = (50 * 0.0 + 50 * 4.0 + 36.0) / 101 - mean**2
    expected = 0.5 * math.erfc((6.0 - mean) / math.sqrt(2 * variance))
    assert score.update(6.0)[0] == pytest.approx(expected)


def test_the_mean_of_several_errors_deviates_less_than_one() -> None:
    score = _score(recent=4, memory=1000)
    for place in range(100):
        found = score.update(float(2 * (place % 2)))
    assert found[0] == pytest.approx(0.5)  # 0 2 0 2: their mean is the mean
    for _ in range(2):
        found = score.update(2.0)  # now 0 2 2 2
    mean = (50 * 2 + 2 * 2) / 102
    deviation = math.sqrt((52 * 4) / 102 - mean**2)
    assert found[0] == pytest.approx(0.5 * math.erfc((1.5 - mean) / (deviation / 2) / math.sqrt(2)))


def test_nothing_is_judged_before_the_warm_up() -> None:
    score = _score()
    assert all(score.update(float(place == 50) * 1e3) == (1.0, False) for place in range(WARM_UP - 1))
    assert score.update(0.0)[0] < 1.0


def test_equal_errors_are_no_anomaly() -> None:
    score = _score()
    for _ in range(300):
        assert not score.update(0.0)[1]


def test_one_anomaly_is_one_event_though_its_errors_flicker() -> None:
    chance, score = random.Random(0), _score(recent=5, probability=1e-5)
    assert not any(score.update(chance.expovariate(10))[1] for _ in range(1000))
    during = [score.update(0.8 if place % 3 else 0.3)[1] for place in range(30)]
    after = [score.update(chance.expovariate(10))[1] for _ in range(100)]
    states = [*during, *after]
    begins = sum(now and not before for before, now in zip([False, *states], states, strict=False))
    assert begins == 1
    assert not states[-1]


def test_a_noisier_stream_raises_the_threshold() -> None:
    chance, score = random.Random(1), _score(recent=1, memory=500)
    for _ in range(2000):
        score.update(chance.expovariate(10))
    assert score.update(2.0)[1]
    for _ in range(2000):
        score.update(chance.expovariate(1))
    assert not score.update(2.0)[1]


def test_false_alarms_are_as_rare_as_was_asked_for_when_errors_are_gaussian() -> None:
    score, chance = _score(recent=10, probability=1e-3, memory=2000), random.Random(2)
    alarms, before = 0, False
    for _ in range(50_000):
        _, now = score.update(5 + chance.gauss(0, 1))
        alarms += now and not before
        before = now
    assert 5 <= alarms <= 50  # means over 10 overlap: fewer events than 1 in 1000


def test_scale_and_offset_change_nothing() -> None:
    chance, one, other = random.Random(3), _score(), _score()
    for _ in range(1000):
        error = chance.lognormvariate(0, 1)
        first, second = one.update(error), other.update(1024 * error + 512)
        assert first[0] == pytest.approx(second[0], rel=1e-6, abs=1e-12)


def test_any_errors_give_a_probability() -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @given(st.lists(st.floats(0, 1e6), max_size=300), st.integers(1, 20), st.integers(0, 500))
    @settings(max_examples=60, deadline=None)
    def sound(errors: list[float], recent: int, more: int) -> None:
        score = _score(recent=recent, memory=recent + more)
        for error in errors:
            probability, _ = score.update(error)
            assert 0.0 <= probability <= 1.0
        kept = score.state()
        assert len(kept["recent"]) <= recent

    sound()


def test_a_kept_state_goes_on_as_the_first() -> None:
    chance, first, second = random.Random(4), _score(), _score()
    for _ in range(500):
        first.update(chance.expovariate(1))
    second.restore(cbor2.loads(cbor2.dumps(first.state())))
    for _ in range(200):
        error = chance.expovariate(0.3)
        assert first.update(error) == second.update(error)


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"count": 10**9},
        {"mean": float("nan")},
        {"variance": -1.0},
        {"variance": None},
        {"recent": [1.0]},
        {"recent": [float("inf")] * 10},
        {"recent": b"0123456789"},
        {"within": 1},
        None,
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change: dict[str, Any] | None) -> None:
    score = _score()
    for place in range(200):
        score.update(float(place % 3))
    kept = score.state()
    with pytest.raises(ValueError, match=r"."):
        score.restore(None if change is None else kept | change)
    assert score.state() == kept
