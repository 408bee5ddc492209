"""The synthetic sensor: what its options say, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import EndOfStreamError, Reading
from edge_client.sensors.synthetic import GAP_STEPS, SPIKE, SyntheticSensor
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors.scripted import played, sampler

WaitUntil = Callable[..., Any]


def stream(count: int, **options: Any) -> list[Reading]:
    one = SyntheticSensor(options)
    found = [one.read() for _ in range(count)]
    assert None not in found
    return found  # type: ignore[return-value]


def values(readings: list[Reading]) -> Any:
    return np.concatenate([reading.values for reading in readings])


def test_it_gives_sines_of_the_cycle_asked_for() -> None:
    found = values(stream(200, channels=2, cycle=20.0, noise=0.0))
    t = np.arange(1, 201)
    expected = np.stack([np.sin(2 * np.pi * t / 20), np.sin(2 * np.pi * (t / 20 + 0.5))], axis=1)
    assert np.allclose(found, expected, atol=1e-5)


def test_its_noise_has_the_deviation_asked_for() -> None:
    quiet, noisy = (values(stream(5000, noise=noise)) for noise in (0.0, 0.5))
    assert np.std(noisy - quiet) == pytest.approx(0.5, rel=0.05)


def test_the_same_seed_gives_the_same_stream() -> None:
    options = {"seed": 3, "spike": 0.1, "missing": 0.1, "gap": 0.1, "stuck": 0.1, "backward": 0.1}
    one, same, other = (stream(500, **(options | extra)) for extra in ({}, {}, {"seed": 4}))
    assert np.array_equal(values(one), values(same), equal_nan=True)
    assert [reading.time for reading in one] == [reading.time for reading in same]
    assert not np.array_equal(values(one), values(other), equal_nan=True)


def test_bursts_hold_the_same_samples() -> None:
    single, burst = stream(60, noise=0.2), stream(6, noise=0.2, burst=10)
    assert np.array_equal(values(single), values(burst))
    assert [reading.time for reading in burst] == [single[last].time for last in range(9, 60, 10)]


def test_drifts_come_at_their_times_and_are_the_label() -> None:
    found = stream(300, noise=0.0, step_s=0.5, drift_at="50, 100", drift=7.0, labelled=True)
    level = values(found).mean(axis=1)
    assert level[:99] == pytest.approx(0, abs=1e-5)
    assert level[99:199] == pytest.approx(7, abs=1e-5)
    assert level[199:] == pytest.approx(14, abs=1e-5)
    assert [reading.label for reading in found] == [0] * 99 + [1] * 100 + [0] * 101


def test_it_ends_after_the_readings_asked_for() -> None:
    one = SyntheticSensor({"readings": 2})
    assert (one.read(), one.read()) != (None, None)
    with pytest.raises(EndOfStreamError):
        one.read()


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        ("missing", lambda v, _t: np.isnan(v).any(axis=1)),
        ("spike", lambda v, _t: (np.abs(v) > SPIKE / 2).any(axis=1)),
        ("gap", lambda _v, t: np.diff(t, prepend=0) == GAP_STEPS + 1),
        ("repeat", lambda _v, t: np.diff(t, prepend=0) == 0),
    ],
)
def test_faults_come_as_often_as_asked_for(fault: str, shows: Any) -> None:
    found = stream(3000, **{fault: 0.1})
    times = np.array([reading.time for reading in found])
    assert np.mean(shows(values(found), times)) == pytest.approx(0.1, rel=0.25)


def test_the_clock_goes_backwards_and_channels_stick_when_asked_for() -> None:
    times = np.array([reading.time for reading in stream(500, backward=0.1)])
    assert 25 < (np.diff(times) < 0).sum() < 75
    stuck = values(stream(500, stuck=0.02))
    assert (np.diff(stuck, axis=0) == 0).any(axis=1).mean() > 0.3


def test_failures_and_missing_readings_when_asked_for() -> None:
    with pytest.raises(SensorError):
        SyntheticSensor({"failure": 1.0}).read()
    assert SyntheticSensor({"nothing": 1.0}).read() is None


@pytest.mark.parametrize(
    "options",
    [{"channels": 0}, {"burst": 10_000}, {"cycle": 0.0}, {"noise": -1.0}, {"gap": 1.5}, {"drift_at": "soon"}, {"x": 1}],
)
def test_options_that_mean_nothing_are_refused_by_name(options: Any) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        SyntheticSensor(options)


def test_a_stream_of_every_fault_comes_through_the_sampler_as_finite_samples(wait_until: WaitUntil) -> None:
    faults = {"missing": 0.05, "spike": 0.02, "stuck": 0.01, "gap": 0.01, "repeat": 0.03, "backward": 0.01}
    one = sampler(
        SyntheticSensor,
        period_s=1.0,
        queue=5000,
        stuck_s=20.0,
        options=faults | {"nothing": 0.02, "readings": 5000, "seed": 8},
    )
    samples = played(one, wait_until)
    counted = one.counters
    assert len(samples) + counted.duplicates + counted.skipped + 100 == pytest.approx(5000, abs=50)
    assert np.isfinite(np.concatenate([sample.values for sample in samples])).all()
    assert min(counted.held, counted.duplicates, counted.clock_faults) > 20
    gaps = (np.diff([sample.number for sample in samples]) > 1).sum()
    assert gaps == counted.gaps == pytest.approx(50, abs=30)
    assert counted.failures == 0
