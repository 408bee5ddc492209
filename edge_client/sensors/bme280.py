"""Bosch's BME280 on I2C: temperature, pressure and humidity (BST-BME280-DS001). Also the BMP280, without humidity.

The chip sleeps between readings: each one starts a measurement of its own ("forced mode", section 3.3.3).
"""

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors import bme280_compensation as compensation
from edge_client.sensors.number import finite
from edge_client.sensors.options import parse
from pollen.errors import SensorError, SettingsError

CHANNELS: Final = (
    Channel("temperature", "°C", -40.0, 85.0),
    Channel("pressure", "hPa", 300.0, 1100.0),
    Channel("humidity", "%", 0.0, 100.0),
)
BME280: Final = 0x60
BMP280: Final = 0x58

# Registers, section 5.3.
_ID: Final = 0xD0
_RESET: Final = 0xE0
_CTRL_HUM: Final = 0xF2
_STATUS: Final = 0xF3
_CTRL_MEAS: Final = 0xF4
_CONFIG: Final = 0xF5
_DATA: Final = 0xF7

_RESET_WORD: Final = 0xB6
_FORCED: Final = 0b01
_MEASURING: Final = 0b1000
_COPYING_CALIBRATION: Final = 0b0001
_NOT_MEASURED_20: Final = 0x80000
_NOT_MEASURED_16: Final = 0x8000
_POLL_S: Final = 0.002
_POLLS: Final = 50


class Bus(Protocol):
    """What is used of smbus2.SMBus."""

    def read_byte_data(self, i2c_addr: int, register: int) -> int: ...  # noqa: D102
    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None: ...  # noqa: D102
    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> list[int]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Bme280Options:
    """`bus`: 1 is /dev/i2c-1; `address`: 0x76 or 0x77, as SDO is wired; `oversampling`: how many conversions the chip
    averages, 1, 2, 4, 8 or 16; `humidity`: false leaves that channel out, as a BMP280 has none."""

    bus: int = 1
    address: int = 0x76
    oversampling: int = 1
    humidity: bool = True

    def __post_init__(self) -> None:
        if self.bus < 0:
            raise ValueError(f"bus = {self.bus} must be 0 or more; `ls /dev/i2c-*` shows those there are")
        if self.address not in (0x76, 0x77):
            raise ValueError(f"address = {self.address:#x} must be 0x76 or 0x77")
        if self.oversampling not in (1, 2, 4, 8, 16):
            raise ValueError(f"oversampling = {self.oversampling} must be 1, 2, 4, 8 or 16")


class Bme280Sensor:
    """One forced measurement a reading, which takes 8 ms, with 16-fold oversampling 98 ms.

    Raises SensorError when nothing answers, or something else does. `open_bus` opens a bus by its number.
    """

    def __init__(self, options: Options, open_bus: Callable[[int], Bus] | None = None) -> None:
        self._options = parse(Bme280Options, options)
        self._where = f"I2C bus {self._options.bus}, address {self._options.address:#x}"
        try:
            self._bus: Bus | None = (open_bus or _smbus)(self._options.bus)
        except OSError as error:
            raise SensorError(
                f"/dev/i2c-{self._options.bus} can't be opened: {error}; switch I2C on (raspi-config) and put this "
                "user into the group i2c"
            ) from error
        try:
            self._calibration = self._start()
        except OSError as error:
            self.close()
            raise SensorError(f"{self._where}: nothing answers: {error}; check wiring and address") from error
        except SensorError:
            self.close()
            raise

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Temperature in °C, pressure in hPa, humidity in % unless it is left out."""
        return CHANNELS if self._options.humidity else CHANNELS[:2]

    def read(self) -> Reading:
        """Measure once. SensorError when the chip doesn't answer or doesn't finish."""
        try:
            data = self._measure()
        except OSError as error:
            raise SensorError(f"{self._where}: the chip does not answer any more: {error}") from error
        raw_pressure = data[0] << 12 | data[1] << 4 | data[2] >> 4
        raw_temperature = data[3] << 12 | data[4] << 4 | data[5] >> 4
        values = [math.nan] * len(self.channels)
        if raw_temperature != _NOT_MEASURED_20:
            t_fine = compensation.fine_temperature(raw_temperature, self._calibration)
            values[0] = compensation.celsius(t_fine)
            if raw_pressure != _NOT_MEASURED_20:
                values[1] = compensation.hectopascal(raw_pressure, t_fine, self._calibration)
            if self._options.humidity and (raw_humidity := data[6] << 8 | data[7]) != _NOT_MEASURED_16:
                values[2] = compensation.percent(raw_humidity, t_fine, self._calibration)
        return Reading(np.array([[finite(value) for value in values]], np.float32))

    def close(self) -> None:
        """Release the bus; the chip is asleep."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None

    def _start(self) -> compensation.Calibration:
        """Check which chip it is, reset it and read its calibration."""
        chip = self._byte(_ID)
        if chip == BMP280 and self._options.humidity:
            raise SensorError(
                f"{self._where}: this is a BMP280, which measures no humidity; set sensor.options.humidity = false"
            )
        if chip not in (BME280, BMP280):
            raise SensorError(f"{self._where}: chip id {chip:#x} is no BME280 (0x60); check sensor.options.address")
        self._write(_RESET, _RESET_WORD)
        time.sleep(_POLL_S)  # start-up time, table 1
        self._wait_while(_COPYING_CALIBRATION)
        self._write(_CONFIG, 0)  # no filter
        first = self._block(*compensation.FIRST_BLOCK)
        return compensation.calibration(
            first, self._block(*compensation.HUMIDITY_BLOCK) if self._options.humidity else b""
        )

    def _measure(self) -> bytes:
        """The data registers from 0xF7 on, section 5.3: pressure, temperature, humidity unless it is left out."""
        factor = self._options.oversampling
        code = factor.bit_length()  # 1, 2, 4, 8, 16 are 1 to 5
        if self._options.humidity:
            self._write(_CTRL_HUM, code)  # counts from the next write of ctrl_meas on
        self._write(_CTRL_MEAS, code << 5 | code << 2 | _FORCED)
        time.sleep((1.0 + 2.0 * factor + 2 * (2.0 * factor + 0.5)) / 1000)  # typical, appendix 9.1
        self._wait_while(_MEASURING)
        return self._block(_DATA, 8 if self._options.humidity else 6)

    def _wait_while(self, busy: int) -> None:
        for _ in range(_POLLS):
            if not self._byte(_STATUS) & busy:
                return
            time.sleep(_POLL_S)
        raise SensorError(f"{self._where}: the chip stays busy; cut its power and switch it on again")

    def _byte(self, register: int) -> int:
        return self._open_bus().read_byte_data(self._options.address, register)

    def _write(self, register: int, value: int) -> None:
        self._open_bus().write_byte_data(self._options.address, register, value)

    def _block(self, register: int, length: int) -> bytes:
        content = bytes(self._open_bus().read_i2c_block_data(self._options.address, register, length))
        if len(content) != length:
            raise SensorError(f"{self._where}: {len(content)} bytes came instead of {length}")
        return content

    def _open_bus(self) -> Bus:
        if self._bus is None:
            raise SensorError(f"{self._where}: the sensor is closed")
        return self._bus


def _smbus(number: int) -> Bus:
    try:
        smbus2 = importlib.import_module("smbus2")
    except ImportError as error:
        raise SettingsError("sensor.kind = 'bme280' needs smbus2; pip install 'pollen-fl[sensors]'") from error
    bus: Bus = smbus2.SMBus(number)
    return bus
