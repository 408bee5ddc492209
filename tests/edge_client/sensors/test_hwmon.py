"""Hardware monitoring chips, from folders laid out as the kernel's documentation says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_client.sensors.hwmon import HwmonSensor
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors.sysfs_tree import hwmon, write

BOARD = {
    "name": "nct6798",
    "temp1_input": "41500",
    "temp1_label": "CPU",
    "temp10_input": "-3250",
    "in0_input": "1104",
    "curr1_input": "730",
    "power1_input": "2500000",
    "fan2_input": "1280",
    "humidity1_input": "45500",
    "temp1_max": "80000",
}


def root(sys: Path) -> Path:
    return sys / "class" / "hwmon"


def test_every_type_comes_in_its_unit(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, BOARD)
    sensor = HwmonSensor({"chip": "nct6798"}, root(tmp_path))
    values = sensor.read().values
    assert values.dtype == np.float32
    read = dict(zip([(channel.name, channel.unit) for channel in sensor.channels], values[0].tolist(), strict=True))
    assert read == {
        ("temp1", "°C"): 41.5,
        ("temp10", "°C"): -3.25,
        ("in0", "V"): pytest.approx(1.104),
        ("curr1", "A"): pytest.approx(0.73),
        ("power1", "W"): 2.5,
        ("fan2", "rpm"): 1280.0,
        ("humidity1", "%"): 45.5,
    }
    assert all(channel.low <= value <= channel.high for channel, value in zip(sensor.channels, values[0], strict=True))


def test_inputs_are_chosen_by_name_or_label_in_any_order(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, BOARD)
    sensor = HwmonSensor({"chip": "nct6798", "inputs": "in0, CPU"}, root(tmp_path))
    assert [channel.name for channel in sensor.channels] == ["in0", "CPU"]
    assert sensor.read().values[0].tolist() == pytest.approx([1.104, 41.5])


def test_a_chip_is_found_by_name_whatever_its_number(tmp_path: Path) -> None:
    first = hwmon(tmp_path, 0, {"name": "cpu_thermal", "temp1_input": "50000"})
    hwmon(tmp_path, 1, {"name": "rpi_volt", "in0_input": "1"}, at="rpi")
    sensor = HwmonSensor({"chip": "cpu_thermal"}, root(tmp_path))
    assert sensor.read().values[0, 0] == 50
    # The driver is loaded again, and another chip takes the number.
    shutil.rmtree(first)
    (root(tmp_path) / "hwmon0").unlink()
    hwmon(tmp_path, 0, {"name": "nvme", "temp1_input": "33000"}, at="nvme0")
    with pytest.raises(SensorError, match=r"'cpu_thermal'.*gone"):
        sensor.read()
    hwmon(tmp_path, 5, {"name": "cpu_thermal", "temp1_input": "51000"})
    assert HwmonSensor({"chip": "cpu_thermal"}, root(tmp_path)).read().values[0, 0] == 51


def test_two_chips_of_one_name_are_told_apart_by_where_they_are(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, {"name": "ina219", "in0_input": "100"}, at="1-0040")
    hwmon(tmp_path, 1, {"name": "ina219", "in0_input": "200"}, at="1-0041")
    with pytest.raises(SettingsError, match=r"several devices; set sensor\.options\.at to one of 1-0040, 1-0041"):
        HwmonSensor({"chip": "ina219"}, root(tmp_path))
    sensor = HwmonSensor({"chip": "ina219", "at": "1-0041"}, root(tmp_path))
    assert sensor.read().values[0, 0] == pytest.approx(0.2)
    with pytest.raises(SensorError, match="at 1-0050"):
        HwmonSensor({"chip": "ina219", "at": "1-0050"}, root(tmp_path))


def test_an_input_that_says_it_is_faulty_or_cant_be_read_is_nan(tmp_path: Path) -> None:
    folder = hwmon(tmp_path, 0, BOARD | {"temp10_fault": "0"})
    sensor = HwmonSensor({"chip": "nct6798", "inputs": "temp1, temp10, in0"}, root(tmp_path))
    assert np.isfinite(sensor.read().values).all()
    write(folder, {"temp10_fault": "1", "in0_input": "broken"})
    values = sensor.read().values[0]
    assert values[0] == 41.5
    assert np.isnan(values[1:]).all()
    (folder / "temp1_input").unlink()
    (folder / "temp1_input").mkdir()  # reading it is an error of this input alone: EISDIR
    write(folder, {"temp10_fault": "0"})
    values = sensor.read().values[0]
    assert np.isnan(values[0])
    assert values[1] == -3.25


def test_a_chip_none_of_whose_inputs_can_be_read_is_an_error(tmp_path: Path) -> None:
    folder = hwmon(tmp_path, 0, {"name": "dead", "temp1_input": "1"})
    sensor = HwmonSensor({"chip": "dead"}, root(tmp_path))
    (folder / "temp1_input").unlink()
    (folder / "temp1_input").mkdir()
    with pytest.raises(SensorError, match="can't be read: temp1_input: Is a directory"):
        sensor.read()


def test_what_is_missing_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match=r"no device 'lm75'.*there are: none"):
        HwmonSensor({"chip": "lm75"}, root(tmp_path))
    hwmon(tmp_path, 0, BOARD)
    with pytest.raises(SensorError, match=r"no device 'lm75'.*nct6798 at thermal_zone0"):
        HwmonSensor({"chip": "lm75"}, root(tmp_path))
    with pytest.raises(SensorError, match=r"no input temp9; it has: temp1, temp10"):
        HwmonSensor({"chip": "nct6798", "inputs": "temp9"}, root(tmp_path))
    with pytest.raises(SettingsError, match=r"sensor\.options\.chip"):
        HwmonSensor({"chip": ""}, root(tmp_path))
    with pytest.raises(SettingsError, match=r"sensor\.options\.inputs.*'temp1' twice"):
        HwmonSensor({"chip": "nct6798", "inputs": "temp1,temp1"}, root(tmp_path))
