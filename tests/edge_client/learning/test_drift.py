"""Drift of errors of any scale: what is found, what isn't, and how soon."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from edge_client.learning.drift import DriftDetector, make
from edge_client.settings import Drift

NAB = Path(__file__).parents[4] / "shared/data/nab-streams/public.npz"

detectors = pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])


def _detector(name: Any) -> DriftDetector:
    made = make(Drift(detector=name))
    assert made is not None
    return made


def _errors(scale: float, seed: int) -> Iterator[float]:
    chance = random.Random(seed)
    while True:
        yield chance.expovariate(1 / scale)


def _places(detector: DriftDetector, errors: Iterator[float], count: int) -> list[int]:
    return [place for place in range(count) if detector.update(next(errors))]


def test_off_is_no_detector() -> None:
    assert make(Drift(detector="off")) is None


@detectors
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1e5])
def test_doubled_errors_of_any_scale_are_drift_within_300_examples(detector: str, scale: float) -> None:
    found = _detector(detector)
    assert _places(found, _errors(scale, 1), 3000) == []
    places = _places(found, _errors(2 * scale, 2), 1000)
    assert len(places) == 1
    assert places[0] < 300


@detectors
def test_the_scale_changes_nothing(detector: str) -> None:
    errors = [next(_errors(1.0, seed)) * (1 + 2 * (seed > 1500)) for seed in range(2500)]
    small, large = _detector(detector), _detector(detector)
    # By powers of two, so that rounding is the same.
    assert [small.update(error / 1024) for error in errors] == [large.update(error * 1024) for error in errors]


@detectors
def test_learning_is_no_drift(detector: str) -> None:
    found, chance = _detector(detector), random.Random(0)
    falling = [chance.expovariate(1) * (0.05 + 0.95 * 0.995**place) for place in range(5000)]
    assert not any(found.update(error) for error in falling)
    sudden = [chance.expovariate(1) * 0.01 for _ in range(3000)]
    assert not any(found.update(error) for error in sudden)


@detectors
def test_errors_of_classes_are_judged_too(detector: str) -> None:
    found, chance = _detector(detector), random.Random(0)
    assert not any(found.update(float(chance.random() < 0.1)) for _ in range(3000))
    assert any(found.update(float(chance.random() < 0.4)) for _ in range(200))


@detectors
def test_a_model_that_never_erred_may_still_drift(detector: str) -> None:
    found, chance = _detector(detector), random.Random(0)
    assert not any(found.update(0.0) for _ in range(1000))
    rare = [float(chance.random() < 0.05) for _ in range(3000)]
    assert sum(found.update(error) for error in rare) <= 1
    assert any(found.update(1.0) for _ in range(100))


@detectors
def test_one_spike_is_no_drift(detector: str) -> None:
    found, errors = _detector(detector), _errors(0.1, 4)
    for place in range(4000):
        assert not found.update(1000.0 if place % 1000 == 500 else next(errors))


@detectors
def test_a_second_drift_is_found_after_the_first(detector: str) -> None:
    found = _detector(detector)
    assert _places(found, _errors(0.1, 1), 2000) == []
    assert len(_places(found, _errors(0.4, 2), 1500)) == 1
    assert len(_places(found, _errors(1.6, 3), 1500)) == 1


@detectors
def test_false_alarms_are_rare(detector: str) -> None:
    # 200,000 independent errors, among them many a hundred times the median.
    false = 0
    for seed in range(10):
        found, chance = _detector(detector), random.Random(seed)
        false += sum(found.update(chance.lognormvariate(0, 1.5)) for _ in range(20_000))
    assert false <= 4


@detectors
def test_a_kept_state_goes_on_as_the_first(detector: str) -> None:
    first, second = _detector(detector), _detector(detector)
    before, errors = _errors(0.1, 1), _errors(0.3, 2)
    for _ in range(777):
        first.update(next(before))
    second.restore(cbor2.loads(cbor2.dumps(first.state())))
    later = [next(errors) for _ in range(500)]
    expected = [first.update(error) for error in later]
    assert any(expected)
    assert [second.update(error) for error in later] == expected


@detectors
def test_a_foreign_or_damaged_state_is_refused_and_changes_nothing(detector: str) -> None:
    found, errors = _detector(detector), _errors(0.1, 1)
    for _ in range(300):
        found.update(next(errors))
    kept = found.state()
    foreign = _detector("adwin" if detector == "page-hinkley" else "page-hinkley").state()
    damaged: list[Any] = [None, b"", [], {}, foreign, *({**kept, name: {}} for name in kept), *_without_each(kept)]
    for state in damaged:
        with pytest.raises(ValueError, match=r"."):
            found.restore(state)
        assert found.state() == kept


def _without_each(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in state:
        yield {key: value for key, value in state.items() if key != name}


@detectors
def test_whatever_a_state_holds_it_is_taken_or_refused(detector: str) -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    leaf = st.none() | st.booleans() | st.integers(-3, 2000) | st.floats() | st.text(max_size=3)
    rows = st.lists(st.lists(st.floats(-1, 1e31), max_size=12), max_size=18)
    inner = leaf | st.dictionaries(
        st.sampled_from(["ticks", "rows", "count", "mean", "sum", "least"]), leaf | rows, max_size=6
    )
    state = st.dictionaries(st.sampled_from(["count", "sum", "mean", "variance", "window", "test"]), inner)

    @given(state, st.lists(st.floats(0, 1e3), max_size=70))
    @settings(max_examples=200, deadline=None)
    def harmless(kept: dict[str, Any], errors: list[float]) -> None:
        found = _detector(detector)
        try:
            found.restore({"detector": detector, **kept})
        except ValueError:
            return
        for error in errors:
            found.update(error)

    harmless()


def test_both_agree_with_river_on_the_errors_of_real_streams() -> None:
    """Persistence's errors on NAB streams, as the detectors themselves, without a scale of their own, see them."""
    drift = pytest.importorskip("river.drift")
    if not NAB.is_file():
        pytest.skip(f"{NAB} isn't here")
    from edge_client.learning.drift.adwin import Adwin
    from edge_client.learning.drift.page_hinkley import PageHinkley

    archive = np.load(NAB, allow_pickle=False)
    total = 0
    for name in archive["streams"]:
        values = archive[f"v__{name}"][:5000]
        errors = (np.abs(np.diff(values)) / values.std()).tolist()
        makes: list[tuple[Callable[[], Any], Any]] = [
            (Adwin, drift.ADWIN()),
            (lambda: PageHinkley(10.0), drift.PageHinkley(threshold=10.0, mode="up")),
        ]
        for make_ours, theirs in makes:
            ours = make_ours()
            for place, error in enumerate(errors):
                theirs.update(error)
                found = bool(ours.update(error))
                assert found == theirs.drift_detected, (name, place)
                if found:
                    total += 1
                    ours = make_ours()
    assert total > 20
