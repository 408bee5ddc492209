"""Serial lines, on real pseudo-terminals."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.sensors import Reading
from edge_client.sensors.lines import LINE_BYTES
from edge_client.sensors.sampling import Sampler
from edge_client.sensors.serial_line import SerialSensor
from edge_client.settings import Sensor
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors.serial_device import SerialDevice

pytest.importorskip("serial")

WaitUntil = Callable[..., Any]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[SerialDevice]:
    one = SerialDevice(tmp_path / "ttyUSB0")
    yield one
    one.unplug()


def opened(device: SerialDevice, **options: Any) -> SerialSensor:
    return SerialSensor({"port": str(device.port), "channels": "t, h"} | options)


def awaited(sensor: SerialSensor, wait_until: WaitUntil) -> list[float]:
    reading: Reading = wait_until(sensor.read, 10, "a reading")
    assert reading.values.dtype == np.float32
    assert reading.values.shape == (1, len(sensor.channels))
    return reading.values[0].tolist()


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("csv", "21.5,40.25"),
        ("csv", " 21.5 ; 40.25 "),
        ("csv", "2.15e1\t40.25"),
        ("pairs", "t=21.5 h=40.25"),
        ("pairs", "12:30:05 t: 21.5, h = 40.25; other=x"),
        ("json", '{"t": 21.5, "h": "40.25"}'),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_format_is_read(device: SerialDevice, wait_until: WaitUntil, form: str, line: str, end: str) -> None:
    sensor = opened(device, format=form)
    device.write(f"boot{end}{line}{end}")
    assert awaited(sensor, wait_until) == [21.5, 40.25]
    sensor.close()


def test_channels_have_the_units_and_ranges_of_the_options(device: SerialDevice) -> None:
    sensor = opened(device, units="°C, %", ranges="-40..85, 0..")
    assert [(one.name, one.unit, one.low, one.high) for one in sensor.channels] == [
        ("t", "°C", -40, 85),
        ("h", "%", 0, np.inf),
    ]
    sensor.close()


def test_the_newest_whole_line_counts_and_nothing_new_is_none(device: SerialDevice, wait_until: WaitUntil) -> None:
    sensor = opened(device)
    assert sensor.read() is None
    device.write("half a line\n1,1\n2,2\n3,")
    assert awaited(sensor, wait_until) == [2, 2]
    assert sensor.read() is None, "the third line isn't whole yet"
    device.write("3\n")
    assert awaited(sensor, wait_until) == [3, 3]
    sensor.close()


def test_what_came_before_the_first_line_end_is_dropped(device: SerialDevice, wait_until: WaitUntil) -> None:
    """It looks like a whole line, and is the end of 121.5."""
    sensor = opened(device)
    device.write("21.5,40\n")
    assert sensor.read() is None
    device.write("5,6\n")
    assert awaited(sensor, wait_until) == [5, 6]
    sensor.close()


def test_a_missing_value_is_nan_and_lines_without_any_are_skipped_with_one_line_of_log(
    device: SerialDevice, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    sensor = opened(device)
    device.write("\n,7\n")
    values = awaited(sensor, wait_until)
    assert np.isnan(values[0])
    assert values[1] == 7
    skipped = sensor._lines._skipped
    bad = (b"1,2,3\n", b"x,y\n", b"\xff\xfe,1\n", b"1" * (LINE_BYTES + 1) + b"\n", b"# comment\n")
    with caplog.at_level(logging.WARNING):
        for number, line in enumerate(bad, 1):
            device.write(line)
            wait_until(
                lambda number=number: sensor.read() is None and skipped.total == number, 10, f"{line[:9]!r} skipped"
            )
        device.write("8,9\n")
        assert awaited(sensor, wait_until) == [8, 9]
    assert [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()] == [
        f"lines from {device.port}: 1 skipped, the last one with 3 values for 2 channels"
    ]
    sensor.close()


def test_a_line_without_end_takes_no_memory(device: SerialDevice, wait_until: WaitUntil) -> None:
    sensor = opened(device)
    device.write("\n")
    for _ in range(200):
        device.write(b"9" * 1000)
        assert sensor.read() is None
        assert len(sensor._lines._waiting) <= LINE_BYTES
    device.write("\n1,2\n")
    assert awaited(sensor, wait_until) == [1, 2]
    sensor.close()


def test_a_cable_pulled_out_and_put_back(device: SerialDevice, wait_until: WaitUntil) -> None:
    sensor = opened(device)
    device.write("\n1,2\n")
    assert awaited(sensor, wait_until) == [1, 2]
    device.unplug()
    with pytest.raises(SensorError, match="ttyUSB0 can't be read any more"):
        sensor.read()
    sensor.close()
    with pytest.raises(SensorError, match=r"ttyUSB0 can't be opened.*dialout"):
        opened(device)
    device.plug_in()
    again = opened(device)
    device.write("\n3,4\n")
    assert awaited(again, wait_until) == [3, 4]
    again.close()


def test_the_sampling_thread_reads_on_after_the_cable_is_back(device: SerialDevice, wait_until: WaitUntil) -> None:
    settings = Sensor(kind="serial", period_s=0.005, options={"port": str(device.port), "channels": "t, h"})
    sampler = Sampler(SerialSensor, settings, clock=SystemClock(), wake=threading.Event())
    sampler.start()
    taken: list[float] = []

    def got(value: float) -> bool:
        device.write(f"\n{value},0\n")
        taken.extend(float(sample.values[0, 0]) for sample in sampler.take(100))
        return value in taken

    wait_until(lambda: got(1.0), 20, "a sample")
    device.unplug()
    wait_until(lambda: sampler._sensor is None, 20, "the failure to be noticed")
    device.plug_in()
    wait_until(lambda: got(2.0), 30, "a sample after the cable is back")
    sampler.stop()


def test_a_port_that_another_program_has_is_refused(device: SerialDevice) -> None:
    sensor = opened(device)
    with pytest.raises(SensorError, match="can't be opened"):
        opened(device)
    sensor.close()
    opened(device).close()


def test_what_is_no_serial_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1,2\n")
    with pytest.raises(SensorError, match="can't be opened"):
        SerialSensor({"port": str(tmp_path / "file"), "channels": "t"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"format": "xml"}, "format"),
        ({"baud": 0}, "baud"),
        ({"port": ""}, "port"),
        ({"channels": ""}, "channels"),
        ({"channels": "t,t"}, "channels.*twice"),
        ({"units": "°C"}, "units.*1 entries for 2 channels"),
        ({"ranges": "85..-40, 0..1"}, "ranges.*85..-40"),
        ({"ranges": "1, 2"}, "ranges"),
        ({"parity": "E"}, "parity"),
    ],
)
def test_options_are_checked_by_name(device: SerialDevice, options: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=rf"sensor\.options\.{named}"):
        opened(device, **options)
