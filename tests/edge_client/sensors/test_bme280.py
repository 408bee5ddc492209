"""The BME280: Bosch's formulas and registers, on a simulated chip. Nobody has tried it on a real one yet."""

import random

import numpy as np
import pytest

from edge_client.sensors import bme280_compensation as compensation
from edge_client.sensors.bme280 import Bme280Sensor
from edge_client.sensors.bme280_compensation import Calibration
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors import bme280_integers as integers
from tests.edge_client.sensors import simulated_bme280 as simulated
from tests.edge_client.sensors.simulated_bme280 import SimulatedBme280

OWN = Calibration(simulated.T, simulated.P, simulated.H)


def test_temperature_and_pressure_are_those_of_the_datasheets_example() -> None:
    """BST-BMP280-DS001, section 3.12: t_fine 128422, 25.08 °C, 100653.27 Pa, in both forms."""
    fine = compensation.fine_temperature(simulated.RAW_TEMPERATURE, OWN)
    assert int(fine) == 128422
    assert compensation.celsius(fine) == pytest.approx(25.08, abs=0.005)
    assert compensation.hectopascal(simulated.RAW_PRESSURE, fine, OWN) == pytest.approx(1006.5327, abs=5e-5)
    assert integers.t_fine(simulated.RAW_TEMPERATURE, OWN) == 128422
    assert integers.centicelsius(128422) == 2508
    assert integers.pascal_q8(simulated.RAW_PRESSURE, 128422, OWN) == pytest.approx(25767236, abs=5)


def test_humidity_worked_by_hand() -> None:
    """With h3 = h5 = h6 = 0 the formula is short: h4 * 64 is subtracted, h2 / 65536 scales, h1 bends."""
    own = Calibration(simulated.T, simulated.P, (75, 362, 0, 313, 0, 0))
    straight = (26000 - 313 * 64) * 362 / 65536
    assert compensation.percent(26000, 128422.0, own) == pytest.approx(straight * (1 - 75 * straight / 524288))
    assert compensation.percent(0, 128422.0, own) == 0
    assert compensation.percent(65535, 128422.0, own) == 100


def test_both_forms_of_the_formulas_agree_wherever_a_chip_can_measure() -> None:
    compared = 0
    chosen = random.Random(5)
    for _ in range(3000):
        raw_t = chosen.randrange(300_000, 720_000)
        raw_p, raw_h = chosen.randrange(200_000, 700_000), chosen.randrange(15_000, 45_000)
        fine, whole = compensation.fine_temperature(raw_t, OWN), integers.t_fine(raw_t, OWN)
        celsius = compensation.celsius(fine)
        if not -40 <= celsius <= 85:
            continue
        compared += 1
        assert celsius == pytest.approx(integers.centicelsius(whole) / 100, abs=0.011)
        pressure = compensation.hectopascal(raw_p, fine, OWN)
        assert pressure == pytest.approx(integers.pascal_q8(raw_p, whole, OWN) / 25600, abs=0.02)
        humidity = compensation.percent(raw_h, fine, OWN)
        assert humidity == pytest.approx(integers.percent_q10(raw_h, whole, OWN) / 1024, abs=0.06)
    assert compared > 1000


def test_calibration_registers_are_read_with_their_signs() -> None:
    own = compensation.calibration(bytes(simulated.registers()[0x88:0xA2]), bytes(simulated.registers()[0xE1:0xE8]))
    assert own == OWN
    negative = (255, -321, 200, -2000, -1500, -100)
    file = simulated.registers(negative)
    assert compensation.calibration(bytes(file[0x88:0xA2]), bytes(file[0xE1:0xE8])).h == negative


def test_a_calibration_of_zeros_gives_nan_and_no_error() -> None:
    nothing = Calibration((0,) * 3, (0,) * 9, (0,) * 6)
    assert np.isnan(compensation.hectopascal(simulated.RAW_PRESSURE, 0.0, nothing))


@pytest.mark.parametrize("oversampling", [1, 16])
def test_each_reading_is_one_forced_measurement(oversampling: int) -> None:
    chip = SimulatedBme280()
    sensor = Bme280Sensor({"oversampling": oversampling}, chip.open)
    assert chip.measurements == [], "opening starts none"
    values = sensor.read().values
    assert values.dtype == np.float32
    assert values[0].tolist() == pytest.approx([25.0825, 1006.5327, 27.079], abs=0.001)
    code = {1: 1, 16: 5}[oversampling]
    assert chip.measurements == [(code, code << 5 | code << 2 | 1)]
    chip.raw = (simulated.RAW_TEMPERATURE + 3000, simulated.RAW_PRESSURE, simulated.RAW_HUMIDITY)
    assert sensor.read().values[0, 0] > values[0, 0]
    sensor.close()
    assert chip.opened == 0


def test_a_channel_the_chip_did_not_measure_is_nan() -> None:
    chip = SimulatedBme280()
    sensor = Bme280Sensor({}, chip.open)
    chip.raw = (simulated.RAW_TEMPERATURE, 0x80000, 0x8000)
    values = sensor.read().values[0]
    assert values[0] == pytest.approx(25.08, abs=0.01)
    assert np.isnan(values[1:]).all()
    chip.raw = (0x80000, simulated.RAW_PRESSURE, simulated.RAW_HUMIDITY)
    assert np.isnan(sensor.read().values).all(), "without a temperature the others can't be known"


def test_a_bmp280_is_refused_with_a_hint_and_gives_two_channels() -> None:
    chip = SimulatedBme280(chip_id=0x58)
    with pytest.raises(SensorError, match=r"BMP280.*humidity = false"):
        Bme280Sensor({}, chip.open)
    assert chip.opened == 0
    sensor = Bme280Sensor({"humidity": False}, chip.open)
    assert [channel.name for channel in sensor.channels] == ["temperature", "pressure"]
    assert sensor.read().values[0].tolist() == pytest.approx([25.0825, 1006.5327], abs=0.001)
    assert chip.measurements == [(0, 0b00100101)], "no register of the humidity is touched"


def test_whatever_else_answers_is_refused() -> None:
    with pytest.raises(SensorError, match=r"chip id 0x61 is no BME280"):
        Bme280Sensor({}, SimulatedBme280(chip_id=0x61).open)
    with pytest.raises(SensorError, match=r"nothing answers.*Remote I/O"):
        Bme280Sensor({}, SimulatedBme280(address=0x77).open)
    with pytest.raises(SensorError, match=r"/dev/i2c-7 can't be opened"):
        Bme280Sensor({"bus": 7}, SimulatedBme280().open)


def test_a_chip_that_never_finishes_is_an_error() -> None:
    chip = SimulatedBme280()
    sensor = Bme280Sensor({}, chip.open)
    chip.hangs = True
    with pytest.raises(SensorError, match="stays busy"):
        sensor.read()


def test_options_are_checked_by_name() -> None:
    for options, field in (({"address": 0x40}, "address"), ({"oversampling": 3}, "oversampling"), ({"bus": -1}, "bus")):
        with pytest.raises(SettingsError, match=rf"sensor\.options\.{field}"):
            Bme280Sensor(options, SimulatedBme280().open)


def test_the_real_bus_is_asked_through_smbus2() -> None:
    pytest.importorskip("smbus2")
    with pytest.raises(SensorError, match=r"/dev/i2c-93 can't be opened.*raspi-config"):
        Bme280Sensor({"bus": 93})
