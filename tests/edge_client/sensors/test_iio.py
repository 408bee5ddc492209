"""Industrial I/O devices, from folders laid out as the kernel's documentation says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_client.sensors.iio import IioSensor
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors.sysfs_tree import iio, write

MPU6050 = {
    "name": "mpu6050",
    "in_accel_x_raw": "-16384",
    "in_accel_y_raw": "0",
    "in_accel_z_raw": "8192",
    "in_accel_scale": "0.000598",
    "in_anglvel_z_raw": "1000",
    "in_anglvel_scale": "0.001064724",
    "in_temp_raw": "-521",
    "in_temp_offset": "12421",
    "in_temp_scale": "2.941176",
    "in_accel_x_calibbias": "77",
    "sampling_frequency": "50",
}


def root(sys: Path) -> Path:
    return sys / "bus" / "iio" / "devices"


def opened(sys: Path, **options: str) -> IioSensor:
    return IioSensor(options, root(sys))


def units(sensor: IioSensor) -> dict[str, str]:
    return {channel.name: channel.unit for channel in sensor.channels}


def test_raw_values_get_their_offset_then_the_scale_their_axes_share(tmp_path: Path) -> None:
    iio(tmp_path, 0, MPU6050)
    sensor = opened(tmp_path, device="mpu6050")
    assert units(sensor) == {
        "accel_x": "m/s²",
        "accel_y": "m/s²",
        "accel_z": "m/s²",
        "anglvel_z": "rad/s",
        "temp": "°C",
    }
    values = sensor.read().values
    assert values.dtype == np.float32
    expected = [-16384 * 0.000598, 0, 8192 * 0.000598, 1.064724, (-521 + 12421) * 2.941176 / 1000]
    assert values[0].tolist() == pytest.approx(expected)


def test_processed_values_come_in_the_units_people_use(tmp_path: Path) -> None:
    device = {
        "name": "bme280",
        "in_temp_input": "21490",
        "in_humidityrelative_input": "40125",
        "in_pressure_input": "101.325000000",
        # A channel with both forms counts once, as processed.
        "in_pressure_raw": "1",
        "in_pressure_scale": "7",
    }
    iio(tmp_path, 0, device)
    sensor = opened(tmp_path, device="bme280", channels="temp, humidityrelative, pressure")
    assert units(sensor) == {"temp": "°C", "humidityrelative": "%", "pressure": "kPa"}
    assert sensor.read().values[0].tolist() == pytest.approx([21.49, 40.125, 101.325])
    assert len(opened(tmp_path, device="bme280").channels) == 3


def test_scales_are_found_wherever_channels_share_them(tmp_path: Path) -> None:
    converter = {
        "name": "ads1015",
        "in_voltage0_raw": "1000",
        "in_voltage0_scale": "3",
        "in_voltage1_raw": "1000",
        "in_voltage_scale": "2",
        "in_voltage0-voltage1_raw": "-10",
        "in_voltage-voltage_scale": "0.5",
        "in_concentration_co2_raw": "7",
        "in_concentration_co2_scale": "0.01",
        "in_illuminance_input": "250",
        "in_intensity_both_raw": "17",
        "in_rot_quaternion_raw": "0 0 0 1",
        "in_voltage1_peak_raw": "5",
    }
    iio(tmp_path, 0, converter)
    sensor = opened(tmp_path, device="ads1015")
    values = dict(zip(units(sensor).items(), sensor.read().values[0].tolist(), strict=True))
    assert values == {
        ("concentration_co2", "%"): pytest.approx(0.07),
        ("illuminance", "lx"): 250,
        ("intensity_both", ""): 17,
        ("voltage0", "V"): 3,
        ("voltage0-voltage1", "V"): pytest.approx(-0.005),
        ("voltage1", "V"): 2,
    }


def test_a_device_is_found_by_name_or_label_and_place(tmp_path: Path) -> None:
    iio(tmp_path, 3, {"name": "bme280", "label": "cellar", "in_temp_input": "1000"}, at="1-0076")
    iio(tmp_path, 7, {"name": "bme280", "in_temp_input": "2000"}, at="1-0077")
    with pytest.raises(SettingsError, match=r"set sensor\.options\.at to one of 1-0076, 1-0077"):
        opened(tmp_path, device="bme280")
    assert opened(tmp_path, device="bme280", at="1-0077").read().values[0, 0] == 2
    assert opened(tmp_path, device="cellar").read().values[0, 0] == 1


def test_a_device_that_vanishes_and_returns_under_another_number(tmp_path: Path) -> None:
    folder = iio(tmp_path, 0, MPU6050)
    sensor = opened(tmp_path, device="mpu6050")
    shutil.rmtree(folder)
    with pytest.raises(SensorError, match=r"'mpu6050'.*gone"):
        sensor.read()
    sensor.close()
    with pytest.raises(SensorError, match="is closed"):
        sensor.read()
    (root(tmp_path) / "iio:device0").unlink()
    with pytest.raises(SensorError, match="there are: none"):
        opened(tmp_path, device="mpu6050")
    iio(tmp_path, 1, MPU6050)
    assert np.isfinite(opened(tmp_path, device="mpu6050").read().values).all()


def test_one_channel_that_cant_be_read_is_nan_all_of_them_are_an_error(tmp_path: Path) -> None:
    folder = iio(tmp_path, 0, MPU6050)
    sensor = opened(tmp_path, device="mpu6050", channels="temp, accel_x")
    write(folder, {"in_temp_raw": "what"})
    values = sensor.read().values[0]
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
    for name in ("in_temp_raw", "in_accel_x_raw"):  # as when the kernel's buffer is in use: EBUSY, here EISDIR
        (folder / name).unlink()
        (folder / name).mkdir()
    with pytest.raises(SensorError, match="can't be read: in_accel_x_raw"):
        sensor.read()


def test_what_is_missing_is_named_with_what_there_is(tmp_path: Path) -> None:
    iio(tmp_path, 0, MPU6050)
    with pytest.raises(SensorError, match=r"no channel magn_x; it has: accel_x"):
        opened(tmp_path, device="mpu6050", channels="temp, magn_x")
    with pytest.raises(SensorError, match=r"mpu6050 at 1-0076"):
        opened(tmp_path, device="mpu9250")
    with pytest.raises(SettingsError, match=r"sensor\.options\.device"):
        opened(tmp_path, device="")
    with pytest.raises(SettingsError, match=r"sensor\.options\.channels"):
        opened(tmp_path, device="mpu6050", channels="temp,,accel_x")
