"""From the BME280's raw numbers to temperature, pressure and humidity.

BST-BME280-DS001, section 4.2.2 (calibration registers) and appendix 8.1 (the floating-point form of the formulas of
section 4.2.3); variables are named as there, and t_fine is not cut to a whole number. A BMP280 (BST-BMP280-DS001) has
the same temperature and pressure.
"""

import math
import struct
from dataclasses import dataclass

FIRST_BLOCK = (0x88, 26)  # address and length: dig_T1 to dig_P9, one unused byte, dig_H1
HUMIDITY_BLOCK = (0xE1, 7)  # dig_H2 to dig_H6


@dataclass(frozen=True, slots=True)
class Calibration:
    """The chip's own trimming parameters; `h` is empty on a BMP280."""

    t: tuple[int, ...]  # dig_T1 to dig_T3
    p: tuple[int, ...]  # dig_P1 to dig_P9
    h: tuple[int, ...]  # dig_H1 to dig_H6


def calibration(first: bytes, humidity: bytes) -> Calibration:
    """Read the registers of FIRST_BLOCK and HUMIDITY_BLOCK; the latter are b"" on a BMP280."""
    t1, t2, t3, *p = struct.unpack_from("<HhhHhhhhhhhh", first)
    if not humidity:
        return Calibration((t1, t2, t3), tuple(p), ())
    h2, h3, e4, e5, e6, h6 = struct.unpack("<hBbBbb", humidity)
    # Two numbers of 12 bits, signed, share the byte 0xE5.
    h4, h5 = e4 << 4 | e5 & 0x0F, e6 << 4 | e5 >> 4
    return Calibration((t1, t2, t3), tuple(p), (first[25], h2, h3, h4, h5, h6))


def fine_temperature(raw: int, own: Calibration) -> float:
    """t_fine from the 20-bit `raw`, in 1/5120 °C."""
    t1, t2, t3 = own.t
    var1 = (raw / 16384.0 - t1 / 1024.0) * t2
    var2 = (raw / 131072.0 - t1 / 8192.0) ** 2 * t3
    return var1 + var2


def celsius(t_fine: float) -> float:
    """The temperature in °C."""
    return t_fine / 5120.0


def hectopascal(raw: int, t_fine: float, own: Calibration) -> float:
    """The pressure in hPa from the 20-bit `raw`; NaN with a calibration that allows none."""
    p1, p2, p3, p4, p5, p6, p7, p8, p9 = own.p
    var1 = t_fine / 2.0 - 64000.0
    var2 = var1 * var1 * p6 / 32768.0
    var2 = var2 + var1 * p5 * 2.0
    var2 = var2 / 4.0 + p4 * 65536.0
    var1 = (p3 * var1 * var1 / 524288.0 + p2 * var1) / 524288.0
    var1 = (1.0 + var1 / 32768.0) * p1
    if var1 == 0.0:
        return math.nan
    p = (1048576.0 - raw - var2 / 4096.0) * 6250.0 / var1
    var1 = p9 * p * p / 2147483648.0
    var2 = p * p8 / 32768.0
    return (p + (var1 + var2 + p7) / 16.0) / 100.0


def percent(raw: int, t_fine: float, own: Calibration) -> float:
    """The relative humidity in %, from 0 to 100, from the 16-bit `raw`."""
    h1, h2, h3, h4, h5, h6 = own.h
    var = t_fine - 76800.0
    var = (raw - (h4 * 64.0 + h5 / 16384.0 * var)) * (
        h2 / 65536.0 * (1.0 + h6 / 67108864.0 * var * (1.0 + h3 / 67108864.0 * var))
    )
    var = var * (1.0 - h1 * var / 524288.0)
    return min(max(var, 0.0), 100.0)
