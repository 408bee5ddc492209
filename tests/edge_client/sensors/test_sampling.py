"""The sensor's thread: on time, in order, and not to be stopped by a sensor."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.sensors import Channel, Reading, sampling
from edge_client.sensors.sampling import QUEUED_VALUES, RETRY_MAX_S, RETRY_MIN_S, STOP_S
from pollen.errors import SensorError, SettingsError
from tests.edge_client.clock import VirtualClock
from tests.edge_client.sensors.scripted import AB, PERIOD_S, Script, played, sampler

WaitUntil = Callable[..., Any]


def test_readings_are_stamped_and_numbered_in_order(wait_until: WaitUntil) -> None:
    clock = VirtualClock()
    start, wall = clock.monotonic(), clock.wall()
    samples = played(sampler(Script([[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]), clock), wait_until)
    assert [sample.values.tolist() for sample in samples] == [[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]
    assert [sample.number for sample in samples] == [0, 1, 2]
    assert [sample.monotonic for sample in samples] == pytest.approx([start + PERIOD_S * n for n in (1, 2, 3)])
    assert [sample.wall for sample in samples] == pytest.approx([wall + PERIOD_S * n for n in (1, 2, 3)])
    assert all(sample.synchronised for sample in samples)


def test_a_sample_says_whether_its_wall_time_is_known(wait_until: WaitUntil) -> None:
    clock = VirtualClock()

    def turn(known: bool | None) -> Callable[[], Any]:
        def step() -> Any:
            clock.known = known
            return [[1, 2]]

        return step

    samples = played(sampler(Script([turn(False), turn(True), turn(None)]), clock), wait_until)
    assert [sample.synchronised for sample in samples] == [False, True, False]


def test_a_wall_clock_that_jumps_changes_nothing_but_the_wall_time(wait_until: WaitUntil) -> None:
    ten_years = 10 * 365.25 * 86400
    clock = VirtualClock()

    def jump(seconds: float) -> Callable[[], Any]:
        def step() -> Any:
            clock.wall_now += seconds
            return [[1, 2]]

        return step

    jumps = [0, ten_years, 0, -2 * ten_years, 0, ten_years, 0]
    one = sampler(Script([jump(seconds) for seconds in jumps]), clock)
    steady, start = sampler(Script([jump(0) for _ in jumps])), clock.wall()
    samples, expected = played(one, wait_until), played(steady, wait_until)
    assert [sample.monotonic for sample in samples] == [sample.monotonic for sample in expected]
    assert [sample.number for sample in samples] == [sample.number for sample in expected]
    off = [round((sample.wall - start) / ten_years) for sample in samples]
    assert off == [0, 1, 1, -1, -1, 0, 0]
    assert one.counters == steady.counters


def test_a_sensor_that_raises_is_opened_again(wait_until: WaitUntil) -> None:
    script = Script(
        [[[1, 2]], SensorError("cable"), [[3, 4]], ZeroDivisionError("bug"), [[5, 6]], [[1, 2, 3]], [[7, 8]]]
    )
    one = sampler(script)
    samples = played(one, wait_until)
    assert [sample.values[0, 0] for sample in samples] == [1, 3, 5, 7]
    assert np.diff([sample.number for sample in samples]).tolist() == [2, 2, 2], "each time there is a gap"
    assert (one.counters.failures, one.counters.gaps) == (3, 3)
    assert (script.opened, script.closed) == (4, 4)


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), OSError(5, "EIO"), MemoryError()]
)
def test_nothing_a_sensor_raises_ends_the_thread(wait_until: WaitUntil, error: BaseException) -> None:
    one = sampler(Script([[[1, 2]], error, [[3, 4]]]))
    assert len(played(one, wait_until)) == 2
    assert one.counters.failures == 1


def test_opening_again_waits_longer_and_longer_up_to_a_minute(wait_until: WaitUntil) -> None:
    clock = VirtualClock()
    tried: list[float] = []
    end = Script([])

    def opener(_options: Any) -> Any:
        tried.append(clock.monotonic())
        if len(tried) > 12:
            return end
        raise FileNotFoundError("/dev/ttyUSB0")

    played(sampler(opener, clock), wait_until)
    waits = np.diff(tried)
    assert waits[0] == pytest.approx(RETRY_MIN_S)
    assert waits[1:8] == pytest.approx(np.minimum(2 * waits[:7], RETRY_MAX_S))
    assert waits[-1] == pytest.approx(RETRY_MAX_S)


def test_a_failing_close_doesnt_matter(wait_until: WaitUntil, caplog: pytest.LogCaptureFixture) -> None:
    script = Script([[[1, 2]], SensorError("cable"), [[3, 4]]])

    def close() -> None:
        raise OSError("gone")

    script.close = close  # type: ignore[method-assign]
    assert len(played(sampler(script), wait_until)) == 2
    assert "could not be closed" in caplog.text


def test_options_that_cant_be_used_end_the_start_and_missing_hardware_doesnt() -> None:
    def opener(error: Exception) -> Callable[[Any], Any]:
        def opening(_options: Any) -> Any:
            raise error

        return opening

    with pytest.raises(SettingsError, match="colour"):
        sampler(opener(SettingsError("colour"))).start()
    for error in (SensorError("no such bus"), FileNotFoundError("/dev/i2c-1"), TypeError("bug")):
        one = sampler(opener(error), SystemClock())
        one.start()
        assert one.counters.failures == 1
        one.stop()


def test_an_opening_that_hangs_holds_up_neither_the_start_nor_the_stop(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(sampling, "OPENING_S", 0.05)
    goes_on = threading.Event()

    def opener(_options: Any) -> Any:
        goes_on.wait(60)
        return Script([[[1, 2]]])

    one = sampler(opener, SystemClock())
    one.start()
    assert one.channels == ()
    goes_on.set()
    wait_until(lambda: one.ended, 20, "the stream's end")
    assert len(one.take(10)) == 1
    assert one.channels == AB
    again = sampler(lambda _options: threading.Event().wait(60), SystemClock())
    again.start()
    again.stop()


def test_the_sensor_is_opened_read_and_closed_by_one_thread(wait_until: WaitUntil) -> None:
    """Some drivers, and SQLite, take calls from the thread that opened them only."""
    threads = set()

    class Particular(Script):
        def __call__(self, options: Any) -> Script:
            threads.add(threading.get_ident())
            return super().__call__(options)

        def read(self) -> Any:
            threads.add(threading.get_ident())
            return super().read()

        def close(self) -> None:
            threads.add(threading.get_ident())

    played(sampler(Particular([[[1, 2]], SensorError("cable"), [[3, 4]]])), wait_until)
    assert len(threads) == 1


def test_options_found_wrong_after_the_start_has_gone_on_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(sampling, "OPENING_S", 0.05)
    goes_on = threading.Event()

    def opener(_options: Any) -> Any:
        goes_on.wait(60)
        raise SettingsError("colour")

    one = sampler(opener, SystemClock())
    one.start()
    goes_on.set()
    wait_until(lambda: one.counters.failures >= 2, 20, "it to be tried again")
    one.stop()


def test_missing_hardware_is_tried_again_soon_however_long_the_period(wait_until: WaitUntil) -> None:
    clock, tried = VirtualClock(), list[float]()

    def opener(_options: Any) -> Any:
        tried.append(clock.monotonic())
        if len(tried) == 1:
            raise SensorError("no such bus")
        return Script([[[1, 2]]])

    played(sampler(opener, clock, period_s=3600.0), wait_until)
    assert np.diff(tried) == pytest.approx([RETRY_MIN_S])


def test_a_failure_that_repeats_is_logged_once_a_minute(
    wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    """A loose cable must not wear out the card that the log lies on."""

    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    caplog.set_level(logging.INFO)
    steps: list[Any] = []
    for error in (SensorError("loose"), ZeroDivisionError("bug"), UnspeakableError()):
        steps += [step for _ in range(60) for step in ([[1, 2]], error)]
    one = sampler(Script(steps))
    played(one, wait_until)
    assert one.counters.failures == 180
    said = [record.getMessage() for record in caplog.records]
    assert 3 <= len([words for words in said if "will be opened again" in words]) <= 6
    assert 1 <= said.count("sensor opened again") <= 3


@pytest.mark.parametrize(
    "channels",
    [(), (Channel("", "V"),), (Channel("a", "V"), Channel("a", "V")), (Channel("a", "V", 2, 1),), ("a",)],
    ids=["none", "unnamed", "twice", "range", "text"],
)
def test_channels_that_describe_nothing_are_a_failure(channels: Any) -> None:
    one = sampler(Script([[[1, 2]]], channels), SystemClock())
    one.start()
    one.stop()
    assert (one.counters.failures, one.channels) == (1, ())


def test_a_sensor_may_come_back_with_other_channels(wait_until: WaitUntil) -> None:
    """What was read from the old ones can't be learned from together with the new."""
    script = Script([[[1, 2]], [[3, 4]]])

    def change() -> Any:
        script.channels = (*AB, Channel("c", "V"))
        raise SensorError("unplugged")

    script.steps += [change, [[5, 6, 7]]]
    one = sampler(script)
    one.start()
    wait_until(lambda: one.ended, 20, "the stream's end")
    assert one.channels == AB, "those of the samples last taken"
    assert [sample.values.tolist() for sample in one.take(10)] == [[[5, 6, 7]]]
    assert one.channels == script.channels
    assert one.counters.dropped == 2
    one.stop()


def test_a_full_queue_drops_the_oldest_and_counts_it(wait_until: WaitUntil) -> None:
    one = sampler(Script([[[value, 0]] for value in range(20)]), queue=5)
    samples = played(one, wait_until)
    assert [sample.values[0, 0] for sample in samples] == [15, 16, 17, 18, 19]
    assert one.counters.dropped == 15


def test_large_bursts_dont_make_the_queue_larger(wait_until: WaitUntil) -> None:
    burst = np.zeros((2**14, 2), np.float32)
    count = 3 * QUEUED_VALUES // burst.size
    one = sampler(Script([Reading(burst) for _ in range(count)]), queue=10_000)
    samples = played(one, wait_until)
    assert sum(sample.values.size for sample in samples) == QUEUED_VALUES
    assert one.counters.dropped == count - len(samples)
    again = played(sampler(Script([[[1, 2]]])), wait_until)
    assert len(again) == 1


def test_a_sensor_may_use_its_array_again(wait_until: WaitUntil) -> None:
    array = np.zeros((1, 2), np.float32)

    def filled(value: int) -> Callable[[], Any]:
        def step() -> Any:
            array[:] = value
            return Reading(array)

        return step

    samples = played(sampler(Script([filled(1), filled(2), filled(3)])), wait_until)
    assert [sample.values[0, 0] for sample in samples] == [1, 2, 3]


def test_a_slow_reading_doesnt_shift_the_later_ones(wait_until: WaitUntil) -> None:
    clock = VirtualClock()
    start = clock.monotonic()

    def slow() -> Any:
        clock.pass_by(1.4 * PERIOD_S)
        return [[1, 1]]

    one = sampler(Script([[[1, 1]], slow, [[1, 1]], [[1, 1]]]), clock)
    samples = played(one, wait_until)
    due = [1, 3.4, 4, 5]  # the third would have been due while the second was read
    assert [(sample.monotonic - start) / PERIOD_S for sample in samples] == pytest.approx(due)
    assert one.counters.largest_jitter_s == pytest.approx(0, abs=1e-6)
    assert one.counters.gaps == 0, "two periods and a bit are no gap"


def test_a_read_that_begins_late_is_jitter(wait_until: WaitUntil) -> None:
    class Late(VirtualClock):
        waits = 0

        def wait(self, event: threading.Event, seconds: float) -> bool:
            self.waits += 1
            return super().wait(event, seconds + (0.03 if self.waits == 3 else 0.0))

    one = sampler(Script([[[1, 1]]] * 6), Late())
    played(one, wait_until)
    assert one.counters.largest_jitter_s == pytest.approx(0.03)
    assert one.vitals()["sampling_jitter_s"] == pytest.approx(0.03)


def test_readings_that_fail_to_come_are_a_gap(wait_until: WaitUntil) -> None:
    steps: list[Any] = [*[[[1, 2]]] * 10, None, None, [[3, 4]], *[None] * 3, [[5, 6]], [[7, 8]]]
    one = sampler(Script(steps))
    samples = played(one, wait_until)
    assert [sample.number for sample in samples] == [*range(10), 10, 12, 13]
    assert one.counters.gaps == 1
    assert one.silent_s == 0.0, "a recording that has ended isn't silent"


def test_a_sensor_slower_than_its_period_has_no_gaps_once_that_is_known(wait_until: WaitUntil) -> None:
    steps: list[Any] = [step for value in range(40) for step in ([[value, 0]], *[None] * 9)]
    one = sampler(Script(steps))
    numbers = np.diff([sample.number for sample in played(one, wait_until)])
    assert (numbers[8:] == 1).all()


def test_a_read_that_hangs_is_noticed_and_the_sampler_still_stops(
    wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock stands on its head here: the thread hangs, so only the test lets time pass."""
    hangs, goes_on = threading.Event(), threading.Event()
    clock = VirtualClock()

    def hang() -> Any:
        hangs.set()
        goes_on.wait()
        return [[1, 2]]

    one = sampler(Script([[[1, 2]], hang]), clock)
    one.start()
    assert hangs.wait(20)
    clock.pass_by(59)
    one.take(1)
    assert "no reading for" not in caplog.text
    clock.pass_by(2)
    one.take(1)
    one.take(1)
    assert one.vitals()["sensor_silent_s"] == pytest.approx(61, abs=1)
    assert caplog.text.count("no reading for 61 s") == 1
    before = SystemClock().monotonic()
    one.stop()
    assert SystemClock().monotonic() - before < STOP_S + 10
    goes_on.set()


def test_channels_that_are_missing_or_stuck_are_named_once(
    wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    steps = [[[value, 7.0]] for value in range(100)] + [[[value, np.nan]] for value in range(500)]
    one = sampler(Script(steps), stuck_s=5.0)
    played(one, wait_until)
    assert caplog.text.count("sensor: b unchanged for 5 s; stuck?") == 1
    assert caplog.text.count("sensor: no usable value from b; readings are skipped") == 0, "at most one a minute"
    again = sampler(Script([[[value, 7.0]] for value in range(5)] + [[[value, np.nan]] for value in range(2000)]))
    played(again, wait_until)
    assert caplog.text.count("sensor: no usable value from b; readings are skipped") == 1


def test_the_counters_are_vitals(wait_until: WaitUntil) -> None:
    one = sampler(Script([[[1, 2]], [[np.nan, 2]], SensorError("x"), [[1, 2]]]), hold_readings=1)
    played(one, wait_until)
    vitals = one.vitals()
    assert (vitals["sensor_held_values"], vitals["sensor_failures"], vitals["sensor_gaps"]) == (1, 1, 1)
    assert all(np.isfinite(value) for value in vitals.values())
