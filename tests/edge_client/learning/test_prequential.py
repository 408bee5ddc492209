"""Faded and hourly means of the errors, by hand."""

import math
from typing import Any

import numpy as np
import pytest

from edge_client.learning.prequential import (
    FADE,
    FIRST,
    FadedMean,
    HourlyErrors,
    LastTarget,
    MajorityClass,
    Prequential,
)
from pollen import cbor

HOUR = 3600.0


def test_faded_means_by_hand() -> None:
    mean = FadedMean(0.5)
    assert np.isnan(mean.value)
    for error in (1.0, 0.0, 4.0):
        mean.add(error)
    assert mean.value == pytest.approx((0.25 * 1 + 0.5 * 0 + 4) / 1.75)


def test_prequential_averages_by_hand() -> None:
    prequential = Prequential()
    errors = [float(index % 3) for index in range(FIRST + 50)]
    for error in errors:
        prequential.add(error, 2 * error)
    weights = FADE ** np.arange(len(errors))[::-1]
    assert prequential.error == pytest.approx(np.average(errors, weights=weights))
    assert prequential.baseline == pytest.approx(2 * prequential.error)
    assert prequential.error_first == pytest.approx(np.mean(errors[:FIRST]))
    assert prequential.count == FIRST + 50


def test_the_majority_class_so_far() -> None:
    majority = MajorityClass(3)
    guesses = []
    for label in (2, 2, 1, 1, 1):
        guesses.append(majority.guess)
        majority.add(label)
    assert guesses == [0, 2, 2, 2, 1]


def test_the_last_target_is_the_guess() -> None:
    last = LastTarget()
    assert last.guess is None
    last.add(np.ones(1, np.float32))
    assert last.guess is not None


def test_today_and_yesterday_are_means_over_24_hours_each() -> None:
    hours = HourlyErrors()
    for hour in range(60):  # the first 12 are forgotten
        for minute in range(0, 60, 6):
            hours.add(float(hour), 2.0 * hour, 1e6 + hour * HOUR + minute * 60)
    assert hours.today == (pytest.approx(np.mean(range(36, 60))), pytest.approx(2 * np.mean(range(36, 60))))
    assert hours.yesterday[0] == pytest.approx(np.mean(range(12, 36)))


def test_without_examples_there_is_no_mean() -> None:
    hours = HourlyErrors()
    assert all(math.isnan(value) for value in (*hours.today, *hours.yesterday))
    hours.add(1.0, 2.0, 5.0)
    assert hours.today == (1.0, 2.0)
    assert math.isnan(hours.yesterday[0])


def test_an_hour_with_more_examples_counts_more() -> None:
    hours = HourlyErrors()
    for now, error in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (HOUR + 3, 5.0)):
        hours.add(error, 0.0, now)
    assert hours.today[0] == 2.0


def test_days_without_examples_empty_the_means() -> None:
    hours = HourlyErrors()
    hours.add(1.0, 1.0, 0.0)
    hours.add(3.0, 3.0, 30 * HOUR)
    assert (hours.today[0], hours.yesterday[0]) == (3.0, 1.0)
    hours.add(5.0, 5.0, 1e9)
    assert hours.today[0] == 5.0
    assert math.isnan(hours.yesterday[0])


def test_errors_of_earlier_times_move_no_clock() -> None:
    hours = HourlyErrors()
    for now in (0.0, HOUR / 2, 0.0, HOUR / 2, 0.0, HOUR / 2):  # labels come late
        hours.add(1.0, 1.0, now)
    assert hours.state()[0] == HOUR / 2


def test_only_running_time_counts() -> None:
    first = HourlyErrors()
    first.add(1.0, 1.0, 1e9)
    first.add(1.0, 1.0, 1e9 + HOUR / 2)
    second = HourlyErrors()
    second.restore(cbor.decode(cbor.encode(first.state()), 10**6))
    second.add(3.0, 3.0, 17.0)  # the machine was booted, and its monotonic clock began again
    assert second.state()[0] == HOUR / 2
    assert second.today[0] == pytest.approx(5 / 3)


def test_what_was_restored_goes_on_the_same() -> None:
    rng = np.random.default_rng(0)
    one, other = Prequential(), Prequential()
    for index, error in enumerate(rng.random(300)):
        one.add(float(error), 1.0, index * 100.0)
    other.restore(cbor.decode(cbor.encode(one.state()), 10**6))
    for error in rng.random(100):
        one.add(float(error), 0.5, 30_000.0)
        other.add(float(error), 0.5, 30_000.0)
    # The first error after a restart moves no clock, so only the hours may differ.
    assert {name: part for name, part in one.state().items() if name != "hours"} == {
        name: part for name, part in other.state().items() if name != "hours"
    }
    assert other.hours.today[0] == pytest.approx(one.hours.today[0])


@pytest.mark.parametrize(
    "damage",
    [
        {"count": -1},
        {"count": 1.5},
        {"first": [0.0]},
        {"model": [0.0, math.nan]},
        {"baseline": "ab"},
        {"hours": [0.0]},
        {"hours": [0.0] * 144 + [math.inf]},
        {"hours": {}},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Prequential().restore(Prequential().state() | damage)


def test_counts_of_other_classes_are_refused() -> None:
    three = MajorityClass(3)
    three.add(2)
    again = MajorityClass(3)
    again.restore(three.state())
    assert again.guess == 2
    with pytest.raises(ValueError, match="expected 4 numbers"):
        MajorityClass(4).restore(three.state())
