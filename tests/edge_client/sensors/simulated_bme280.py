"""A BME280 made of registers, behind smbus2's methods. No real chip: what it shows is that the driver talks as the
datasheet says, not that a chip answers so."""

import errno
from collections.abc import Sequence

# The BMP280's datasheet (BST-BMP280-DS001, section 3.12) works these through; its temperature and pressure are the
# BME280's. Bosch publishes no example for the humidity.
T = (27504, 26435, -1000)
P = (36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000)
H = (75, 362, 0, 313, 50, 30)
RAW_TEMPERATURE, RAW_PRESSURE, RAW_HUMIDITY = 519888, 415148, 25000


def registers(h: Sequence[int] = H) -> bytearray:
    """0x00 to 0xFF of a chip that has just been switched on."""
    file = bytearray(256)
    words = b"".join((value & 0xFFFF).to_bytes(2, "little") for value in (*T, *P))
    file[0x88 : 0x88 + 24] = words
    h1, h2, h3, h4, h5, h6 = h
    file[0xA1] = h1
    file[0xE1:0xE8] = [
        h2 & 0xFF,
        h2 >> 8 & 0xFF,
        h3,
        h4 >> 4 & 0xFF,
        (h4 & 0xF) | (h5 & 0xF) << 4,
        h5 >> 4 & 0xFF,
        h6 & 0xFF,
    ]
    file[0xD0] = 0x60
    file[0xF7:0xFA] = file[0xFA:0xFD] = bytes((0x80, 0, 0))
    file[0xFD:0xFF] = bytes((0x80, 0))
    return file


class SimulatedBme280:
    """Measures when it is told to: `raw` appears in the data registers a few status reads after the command."""

    def __init__(self, chip_id: int = 0x60, address: int = 0x76, h: Sequence[int] = H) -> None:
        self.file = registers(h)
        self.file[0xD0] = chip_id
        self.address = address
        self.raw = (RAW_TEMPERATURE, RAW_PRESSURE, RAW_HUMIDITY)
        self.wired = True
        self.hangs = False
        self.opened = 0
        self.measurements: list[tuple[int, int]] = []  # ctrl_hum, ctrl_meas of each
        self._oversampling_humidity = 0
        self._busy = 0
        self._status = 0

    def open(self, bus: int) -> "SimulatedBme280":
        if bus != 1:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self.opened += 1
        return self

    def close(self) -> None:
        self.opened -= 1

    def read_byte_data(self, i2c_addr: int, register: int) -> int:
        return self.read_i2c_block_data(i2c_addr, register, 1)[0]

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> list[int]:
        self._check(i2c_addr)
        assert length <= 32, "SMBus allows no longer block"
        if register == 0xF3:
            return [self._next_status()]
        return list(self.file[register : register + length])

    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None:
        self._check(i2c_addr)
        if register == 0xE0 and value == 0xB6:
            self._status, self._busy = 0x01, 2
            self.file[0xF2] = self.file[0xF4] = self.file[0xF5] = 0
            return
        self.file[register] = value
        if register == 0xF4:
            self._oversampling_humidity = self.file[0xF2]  # latched by this write, section 5.4.3
            if value & 0b11 in (1, 2):
                self._status, self._busy = 0x08, 2
                self._measure(value)

    def _check(self, address: int) -> None:
        if not self.wired or address != self.address:
            raise OSError(errno.EREMOTEIO, "Remote I/O error")

    def _next_status(self) -> int:
        if self._busy and not self.hangs:
            self._busy -= 1
        return self._status if self._busy or self.hangs else 0

    def _measure(self, control: int) -> None:
        self.measurements.append((self._oversampling_humidity, control))
        temperature, pressure, humidity = self.raw
        pressure = pressure if control >> 2 & 7 else 0x80000
        temperature = temperature if control >> 5 else 0x80000
        humidity = humidity if self._oversampling_humidity & 7 else 0x8000
        self.file[0xF7:0xFA] = (pressure << 4).to_bytes(3, "big")
        self.file[0xFA:0xFD] = (temperature << 4).to_bytes(3, "big")
        self.file[0xFD:0xFF] = humidity.to_bytes(2, "big")
