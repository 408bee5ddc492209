"""Whatever comes from a sensor's side gives numbers, NaN or SensorError, and takes no memory for long."""

import itertools
import math
import random
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge_client.sensors import Reading, Sensor
from edge_client.sensors.bme280 import Bme280Sensor
from edge_client.sensors.hwmon import HwmonSensor
from edge_client.sensors.iio import IioSensor
from edge_client.sensors.lines import LINE_BYTES, Format, LineReader
from edge_client.sensors.mqtt_topics import payload_values
from edge_client.sensors.number import number
from edge_client.sensors.skipped import Skipped
from pollen.errors import SensorError
from tests.edge_client.sensors import sysfs_tree
from tests.edge_client.sensors.simulated_bme280 import SimulatedBme280

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SETTINGS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
# What might stand where a number should, or be one at the edge of what fits.
ODD = [b"", b"nan", b"inf", b"-inf", b"1e39", b"-1e308", b"9" * 4000, b"1_000", b"0x10", b"\xff\xfe", b"\0", b"1 2"]
ODD += ["١٢".encode(), b"-273150\n", b"1e-400", b"  42  ", b"--1", b"\xf0\x9f\x8c\xa1", b"65535\r\n", b"4294967296"]
contents = st.one_of(st.sampled_from(ODD), st.binary(max_size=5000), st.floats().map(lambda one: repr(one).encode()))


def checked(sensor: Sensor) -> None:
    try:
        reading = sensor.read()
    except SensorError:
        return
    assert isinstance(reading, Reading)
    assert reading.values.dtype == np.float32
    assert reading.values.shape == (1, len(sensor.channels))
    assert not np.isinf(reading.values).any()


@SETTINGS
@given(text=st.one_of(st.text(max_size=50), st.sampled_from([one.decode(errors="replace") for one in ODD])))
def test_any_text_is_a_number_float32_can_hold_or_nan(text: str) -> None:
    with np.errstate(all="raise"):
        assert not np.isinf(np.float32(number(text)))


@SETTINGS
@given(files=st.lists(contents, min_size=3, max_size=3), label=contents)
def test_any_content_of_hwmon_files(tmp_path: Path, files: list[bytes], label: bytes) -> None:
    root = tmp_path / "class" / "hwmon"
    if not root.exists():
        sysfs_tree.hwmon(tmp_path, 0, {"name": "chip"})
    for name, content in zip(("temp1_input", "in0_input", "temp1_fault"), files, strict=True):
        (root / "hwmon0" / name).write_bytes(content)
    (root / "hwmon0" / "temp1_label").write_bytes(label)
    sensor = HwmonSensor({"chip": "chip"}, root)
    assert len(sensor.channels) == 2
    checked(sensor)
    sensor.close()


@SETTINGS
@given(files=st.lists(contents, min_size=4, max_size=4))
def test_any_content_of_iio_files(tmp_path: Path, files: list[bytes]) -> None:
    root = tmp_path / "bus" / "iio" / "devices"
    if not root.exists():
        sysfs_tree.iio(tmp_path, 0, {"name": "chip"})
    names = ("in_temp_input", "in_accel_x_raw", "in_accel_scale", "in_accel_x_offset")
    for name, content in zip(names, files, strict=True):
        (root / "iio:device0" / name).write_bytes(content)
    sensor = IioSensor({"device": "chip"}, root)
    checked(sensor)
    sensor.close()


@SETTINGS
@given(name=contents, others=st.lists(contents, max_size=3))
def test_any_name_of_a_chip(tmp_path: Path, name: bytes, others: list[bytes]) -> None:
    root = tmp_path / "class" / "hwmon"
    for place, content in enumerate([name, *others]):
        if not (root / f"hwmon{place}").exists():
            sysfs_tree.hwmon(tmp_path, place, {"temp1_input": "1"}, at=f"at{place}")
        (root / f"hwmon{place}" / "name").write_bytes(content)
    with pytest.raises(SensorError, match="no device 'wanted'"):
        HwmonSensor({"chip": "wanted"}, root)


@SETTINGS
@given(
    calibration=st.binary(min_size=26, max_size=26),
    humidity=st.binary(min_size=7, max_size=7),
    raw=st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**16 - 1)),
)
def test_any_registers_of_a_bme280(calibration: bytes, humidity: bytes, raw: tuple[int, int, int]) -> None:
    chip = SimulatedBme280()
    chip.file[0x88:0xA2], chip.file[0xE1:0xE8], chip.raw = calibration, humidity, raw
    sensor = Bme280Sensor({}, chip.open)
    with np.errstate(all="raise"):
        checked(sensor)


@SETTINGS
@given(
    form=st.sampled_from(["csv", "pairs", "json"]),
    data=st.lists(
        st.one_of(contents, st.sampled_from([b"\n", b"1,2\n", b"t=1 h=2\r\n", b'{"t":1,"h":2}\n'])), max_size=12
    ),
)
def test_any_bytes_on_a_serial_line(form: Format, data: list[bytes]) -> None:
    reader = LineReader(form, ("t", "h"), Skipped("the line"))
    for part in data:
        values = reader.feed(part)
        assert values is None or (len(values) == 2 and not any(map(math.isinf, values)))
        assert len(reader._waiting) <= LINE_BYTES
    reader.feed(b"\n")
    good = {"csv": b"1,2\n", "pairs": b"t=1 h=2\n", "json": b'{"t":1,"h":2}\n'}[form]
    assert reader.feed(good) == [1, 2], "whatever came before, a good line is read"


@SETTINGS
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_where_a_serial_line_is_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\0", b"1,2\n")
    whole = LineReader("csv", ("t", "h"), Skipped("the line"))
    expected = whole.feed(data)
    parts = LineReader("csv", ("t", "h"), Skipped("the line"))
    newest = None
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        newest = parts.feed(data[start:end]) or newest
    assert newest == pytest.approx(expected, nan_ok=True)


@SETTINGS
@given(
    payload=st.one_of(contents, st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(repr))
)
def test_any_payload_of_a_topic(payload: bytes | str) -> None:
    content = payload.encode(errors="replace") if isinstance(payload, str) else payload
    for value in payload_values(content, ["", "t", "a.0", "0.0"]):
        assert value is None or (isinstance(value, float) and not math.isinf(value))


@pytest.mark.parametrize("payload", [b"[" * 65000, b'{"a":' * 13000, b"[" * 30000 + b"]" * 30000, b"9" * 65000])
def test_payloads_made_to_exhaust_the_parser(payload: bytes) -> None:
    for value in payload_values(payload, ["", "a", "0"]):
        assert value is None or not math.isinf(value)


@pytest.mark.parametrize("source", ["serial", "mqtt"])
def test_hostile_input_leaves_no_memory_behind(source: str) -> None:
    chosen = random.Random(7)
    readers = [LineReader(form, ("t", "h"), Skipped("the line")) for form in ("csv", "pairs", "json")]
    take = {
        "serial": lambda data: [reader.feed(data) for reader in readers],
        "mqtt": partial(payload_values, paths=["", "t", "a.0"]),
    }[source]

    def flood(times: int) -> int:
        for _ in range(times):
            content = chosen.choice([*ODD, chosen.randbytes(3000), b"[" * 2000, b'{"t":' * 100, b"1,2\n" * 900])
            take(content + chosen.choice([b"", b"\n"]))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = flood(100)
        assert flood(500) - before < 64 * 1024
    finally:
        tracemalloc.stop()
