"""What every sensor must do, built in or one's own. Each check takes a `Rig` and says what is wrong with an assertion.

After river's `check_estimator`: a new sensor needs a rig, and passes all of them.
"""

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import Channel, Options, Reading, Sensor
from pollen.errors import SensorError, SettingsError

READINGS = 5
PATIENCE_S = 10.0


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Rig:
    """A sensor on a bench: how it is opened, what makes it measure, and what takes its hardware away.

    `stimulate` gives it something new to read. `absent` are options, or another opener's work, that find no hardware;
    None for a sensor that has none. `unplug` takes the hardware away from an open sensor, `replug` puts it back.
    """

    opener: Callable[[Options], Sensor]
    options: Mapping[str, Any]
    stimulate: Callable[[], None] = _nothing
    unplug: Callable[[], None] | None = None
    replug: Callable[[], None] = _nothing
    labelled: bool = False

    def open(self) -> Sensor:
        return self.opener(self.options)


def read(rig: Rig, sensor: Sensor) -> Reading:
    """The next reading that isn't None."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        rig.stimulate()
        reading = sensor.read()
        if reading is not None:
            return reading
        assert time.monotonic() < deadline, "it never gives a reading"
        time.sleep(0.01)


def check_channels_are_described_and_fixed(rig: Rig) -> None:
    sensor = rig.open()
    channels = tuple(sensor.channels)
    assert channels, "it has no channels"
    for channel in channels:
        assert isinstance(channel, Channel)
        assert isinstance(channel.name, str)
        assert channel.name.strip() == channel.name != ""
        assert isinstance(channel.unit, str)
        assert channel.low < channel.high, f"{channel.name} has an empty range"
    assert len({channel.name for channel in channels}) == len(channels), "two channels have one name"
    read(rig, sensor)
    assert tuple(sensor.channels) == channels, "they change"
    sensor.close()
    again = rig.open()
    assert tuple(again.channels) == channels, "they are others after opening again"
    again.close()


def check_readings_are_float32_rows_of_all_channels(rig: Rig) -> None:
    sensor = rig.open()
    kinds = set()
    for _ in range(READINGS):
        reading = read(rig, sensor)
        assert isinstance(reading, Reading)
        assert reading.values.dtype == np.float32
        assert reading.values.ndim == 2
        assert len(reading.values) >= 1
        assert reading.values.shape[1] == len(sensor.channels)
        assert not np.isinf(reading.values).any()
        kinds.add(type(reading.label))
        assert reading.time is None or math.isfinite(reading.time)
    assert kinds <= ({int, float} if rig.labelled else {type(None)})
    sensor.close()


def check_values_of_a_working_sensor_are_within_their_channels_ranges(rig: Rig) -> None:
    sensor = rig.open()
    for _ in range(READINGS):
        for row in read(rig, sensor).values:
            for value, channel in zip(row, sensor.channels, strict=True):
                assert math.isnan(value) or channel.low <= value <= channel.high, f"{channel.name} = {value}"
    sensor.close()


def check_a_reading_stays_as_it_is_when_the_next_is_taken(rig: Rig) -> None:
    sensor = rig.open()
    first = read(rig, sensor)
    before = first.values.copy()
    for _ in range(READINGS):
        read(rig, sensor)
    assert np.array_equal(first.values, before, equal_nan=True), "readings share their memory"
    sensor.close()


def check_closing_twice_does_no_harm(rig: Rig) -> None:
    sensor = rig.open()
    sensor.close()
    sensor.close()


def check_opening_and_closing_leaves_no_thread_and_no_open_file(rig: Rig) -> None:
    rig.open().close()  # imports and caches are no leaks
    threads, files = set(threading.enumerate()), _open_files()
    for _ in range(READINGS):
        sensor = rig.open()
        rig.stimulate()
        sensor.read()
        sensor.close()
    assert set(threading.enumerate()) <= threads
    assert _come_down_to(files)


def check_an_unknown_option_is_refused_by_name(rig: Rig) -> None:
    with pytest.raises(SettingsError, match=r"sensor\.options\.colour"):
        rig.opener({**rig.options, "colour": "red"})


def check_an_option_of_another_type_is_refused_by_name(rig: Rig) -> None:
    for name in rig.options:
        with pytest.raises(SettingsError, match=rf"sensor\.options\.{name}\b"):
            rig.opener({**rig.options, name: 1.5 if isinstance(rig.options[name], str) else "text"})


def check_hardware_that_vanishes_is_a_sensor_error_until_it_is_back(rig: Rig) -> None:
    if rig.unplug is None:
        pytest.skip("it has no hardware that could vanish")
    sensor = rig.open()
    read(rig, sensor)
    rig.unplug()
    with pytest.raises(SensorError) as failure:
        _read_on(sensor)
    assert "\n" not in str(failure.value)
    sensor.close()
    threads, files = set(threading.enumerate()), _open_files()
    for _ in range(READINGS):
        with pytest.raises(SensorError):
            rig.open()
    assert set(threading.enumerate()) <= threads, "a failed opening leaves a thread"
    assert _come_down_to(files), "a failed opening leaves a file open"
    rig.replug()
    again = rig.open()
    read(rig, again)
    again.close()


def _read_on(sensor: Sensor) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        sensor.read()
        time.sleep(0.01)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def _open_files() -> int:
    gc.collect()  # what other tests have left
    return len(os.listdir(Path("/proc/self/fd")))  # noqa: PTH208 - of a folder that is this process's own


def _come_down_to(files: int) -> bool:
    """Whether no more files are open; the rig's own clients may be connecting at this moment."""
    deadline = time.monotonic() + PATIENCE_S
    while (more := _open_files() > files) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not more
