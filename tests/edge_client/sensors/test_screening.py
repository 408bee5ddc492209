"""Faults of real sensors, worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import Channel, Reading
from edge_client.sensors.screening import LARGEST_BURST, Counters, Screened, Screening
from pollen.errors import SensorError

NAN, INF = math.nan, math.inf
CHANNELS = (Channel("temperature", "°C", -40.0, 85.0), Channel("anything", ""))


def screening(channels: tuple[Channel, ...] = CHANNELS, *, hold: int = 2, stuck_s: float = 0.0) -> Any:
    counters = Counters()
    one = Screening(channels, period_s=1.0, hold_readings=hold, stuck_s=stuck_s, counters=counters)
    return one, counters


def screen(one: Screening, *readings: Any, times: Any = None, start: float = 0.0) -> list[Screened | None]:
    """One reading a second; a number stands for [[number, number]]."""
    found = []
    for index, reading in enumerate(readings):
        values = [[reading, reading]] if isinstance(reading, int | float) else reading
        time = None if times is None else times[index]
        found.append(one.screen(Reading(np.array(values, np.float64), time=time), start + index))
    return found


def values(found: list[Screened | None]) -> list[Any]:
    return [None if one is None else one.values.tolist() for one in found]


def follows(found: list[Screened | None]) -> list[bool | None]:
    return [None if one is None else one.follows for one in found]


def test_a_fault_is_held_from_the_last_good_value_and_then_skipped() -> None:
    one, counters = screening(hold=2)
    found = screen(one, [[1, 5]], [[NAN, 6]], [[INF, 7]], [[NAN, 8]], [[-INF, 9]], [[2, 10]], [[NAN, 11]])
    assert values(found) == [[[1, 5]], [[1, 6]], [[1, 7]], None, None, [[2, 10]], [[2, 11]]]
    assert follows(found) == [True, True, True, None, None, False, True]
    assert (counters.held, counters.skipped) == (3, 2)


def test_channels_are_held_each_for_itself() -> None:
    one, _ = screening(hold=1)
    found = screen(one, [[1, 5]], [[NAN, 6]], [[2, NAN]], [[NAN, 7]])
    assert values(found) == [[[1, 5]], [[1, 6]], [[2, 6]], [[2, 7]]]


def test_a_value_out_of_the_channels_range_is_a_fault_and_a_spike_within_it_is_data() -> None:
    one, counters = screening()
    found = screen(one, [[20, 0]], [[-40, 0]], [[85, 3e38]], [[85.01, 0]], [[-1000, -3e38]])
    assert values(found) == [[[20, 0]], [[-40, 0]], [[85, np.float32(3e38)]], [[85, 0]], [[85, np.float32(-3e38)]]]
    assert counters.held == 2


def test_a_bound_that_float32_cant_hold_is_still_a_value_it_allows() -> None:
    one, counters = screening((Channel("a", "", 0.0, 0.1),))
    assert screen(one, [[0.1]])[0] is not None
    assert counters.skipped == 0


def test_what_float64_holds_and_float32_doesnt_is_a_fault() -> None:
    one, _ = screening()
    assert values(screen(one, [[1, 1]], [[1, 1e300]])) == [[[1, 1]], [[1, 1]]]


def test_nothing_is_held_before_there_was_a_good_value() -> None:
    one, counters = screening()
    assert values(screen(one, [[NAN, 1]], [[NAN, 2]], [[3, 3]])) == [None, None, [[3, 3]]]
    assert (counters.held, counters.skipped) == (0, 2)


def test_nothing_is_held_over_a_gap() -> None:
    one, _ = screening()
    screen(one, *range(10))
    assert values(screen(one, [[NAN, 1]], start=100)) == [None]


def test_holding_can_be_switched_off() -> None:
    one, _ = screening(hold=0)
    assert values(screen(one, 1, NAN, 2)) == [[[1, 1]], None, [[2, 2]]]


def test_a_burst_is_held_sample_by_sample_and_skipped_whole() -> None:
    one, counters = screening(hold=2)
    found = screen(one, [[1, 1], [NAN, 2], [NAN, 3], [4, 4]], [[NAN, 5], [NAN, 6], [NAN, 7]], [[8, 8], [9, NAN]])
    assert values(found) == [[[1, 1], [1, 2], [1, 3], [4, 4]], None, [[8, 8], [9, 8]]]
    assert (counters.held, counters.skipped) == (3, 3)


def test_a_reading_delivered_twice_is_dropped() -> None:
    one, counters = screening()
    found = screen(one, 1, 1, 2, [[2, NAN]], [[2, NAN]], times=[10, 10, 11, 12, 12])
    assert values(found) == [[[1, 1]], None, [[2, 2]], [[2, 2]], None]
    assert follows(found) == [True, None, True, True, None]
    assert (counters.duplicates, counters.clock_faults) == (2, 0)


def test_equal_values_at_another_time_or_without_one_are_new_readings() -> None:
    one, counters = screening()
    assert None not in screen(one, 1, 1, 1, times=[10, 11, 12])
    assert None not in screen(one, 1, 1, 1)
    assert counters.duplicates == 0


def test_times_that_stand_still_or_go_backwards_are_counted_and_nothing_else() -> None:
    one, counters = screening()
    found = screen(one, 1, 2, 3, 4, 5, times=[10, 10, 5, -3e9, -3e9 + 1])
    assert follows(found) == [True] * 5
    assert counters.clock_faults == 3


def test_a_single_time_from_the_past_is_no_gap_when_the_clock_is_back() -> None:
    one, counters = screening()
    screen(one, *range(10), times=range(10))
    assert follows(screen(one, 1, 2, 3, times=[-3e9, 11, 12], start=10)) == [True, True, True]
    assert follows(screen(one, 1, 2, times=[-3e9, 30], start=13)) == [True, False]
    assert counters.clock_faults == 2


def test_a_clock_that_began_anew_while_nothing_came_is_a_gap() -> None:
    """A sensor that lost its power for ten minutes, and counts from 0 again."""
    one, counters = screening()
    screen(one, *range(10), times=[1000 + n for n in range(10)])
    assert follows(screen(one, 1, 2, 3, times=[0, 1, 2], start=610)) == [False, True, True]
    assert counters.clock_faults == 1


def test_a_step_of_more_than_three_of_the_usual_is_a_gap() -> None:
    one, _ = screening()
    regular = [float(n) for n in range(20)]
    assert follows(screen(one, *range(20), times=regular)) == [True] * 20
    found = screen(one, 1, 2, 3, 4, times=[22, 25.1, 26, 27], start=20)
    assert follows(found) == [True, False, True, True]


def test_the_usual_step_follows_a_sensor_that_gets_slower() -> None:
    one, _ = screening()
    screen(one, *range(20), times=[float(n) for n in range(20)])
    found = follows(screen(one, *range(20), times=[20 + 10.0 * n for n in range(20)], start=20))
    assert found[0] is True
    assert found[1] is False
    assert found[10:] == [True] * 10


def test_the_sensors_own_time_decides_where_it_has_one() -> None:
    """A reading that comes late but follows on, as from a buffer; and one that comes on time but doesn't."""
    one, _ = screening()
    screen(one, *range(10), times=range(10))
    assert follows(screen(one, 1, times=[10], start=500)) == [True]
    assert follows(screen(one, 1, times=[500], start=501)) == [False]


def test_without_a_time_of_its_own_a_late_reading_is_a_gap() -> None:
    one, _ = screening()
    screen(one, 1, 2, 3)
    assert follows(screen(one, 1, start=4.9)) == [True]
    assert follows(screen(one, 1, start=8.0)) == [False]


def test_a_lost_burst_is_a_gap_and_a_burst_that_comes_late_isnt() -> None:
    one, _ = screening()
    bursts = [[[n, n]] * 50 for n in range(8)]
    times: list[float] = [50.0 * n for n in range(6)]
    found = screen(one, *bursts, times=[*times, times[-1] + 70, times[-1] + 70 + 100])
    assert follows(found) == [True] * 7 + [False]


def test_a_channel_that_stands_still_is_reported_and_its_values_pass() -> None:
    one, counters = screening(stuck_s=3.0)
    found = screen(one, [[1, 7]], [[2, 7]], [[3, 7]], [[4, 7]])
    assert None not in found
    assert (one.stuck, counters.stuck_channels) == (("anything",), 1)
    screen(one, [[5, NAN]], start=4)
    assert one.stuck == ("anything",), "NaN is no other value"
    screen(one, [[5, 8]], start=5)
    assert (one.stuck, counters.stuck_channels) == ((), 0)


def test_the_channels_for_whose_sake_readings_are_skipped_are_named() -> None:
    one, _ = screening(hold=1)
    screen(one, [[1, 1]], [[2, NAN]])
    assert one.missing == ()
    screen(one, [[3, NAN]], start=2)
    assert one.missing == ("anything",)
    screen(one, [[4, 4]], start=3)
    assert one.missing == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([[1.0, 2.0, 3.0]], "shape"),
        ([1.0, 2.0], "shape"),
        (np.zeros((0, 2)), "shape"),
        (np.zeros((1, 2), complex), "complex"),
        (np.broadcast_to(np.float32(0), (10**9, 2)), f"at most {LARGEST_BURST}"),
    ],
)
def test_what_is_no_reading_of_these_channels_is_an_error(wrong: Any, words: str) -> None:
    one, _ = screening()
    with pytest.raises(SensorError, match=words):
        one.screen(Reading(wrong), 0.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *[(3, 3), (0.5, 0.5), (True, True), (np.int8(4), 4), (np.float32(0.5), 0.5)],
        *[(NAN, None), (INF, None), (1e300, None), (10**400, None), (None, None)],
    ],
)
def test_a_label_is_a_number_that_float32_holds_or_none(given: Any, expected: Any) -> None:
    one, _ = screening()
    found = one.screen(Reading(np.zeros((1, 2), np.float32), given), 0.0)
    assert found is not None
    assert found.label == expected
    assert not isinstance(found.label, np.generic)


@pytest.mark.parametrize("given", ["2", b"2", [1], object(), 1j, np.datetime64("2020-01-01")])
def test_labels_and_times_of_other_types_are_errors(given: Any) -> None:
    one, _ = screening()
    with pytest.raises(SensorError, match="label"):
        one.screen(Reading(np.zeros((1, 2), np.float32), given), 0.0)
    with pytest.raises(SensorError, match="time"):
        one.screen(Reading(np.zeros((1, 2), np.float32), None, given), 0.0)
