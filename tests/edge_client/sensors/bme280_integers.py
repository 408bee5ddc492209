"""The integer form of the BME280's formulas (BST-BME280-DS001, section 4.2.3), which the floating-point form must meet.

Python's >> rounds down like the datasheet's on a negative number, and / between integers of C rounds towards zero.
"""

from edge_client.sensors.bme280_compensation import Calibration


def t_fine(raw: int, own: Calibration) -> int:
    t1, t2, t3 = own.t
    var1 = (((raw >> 3) - (t1 << 1)) * t2) >> 11
    var2 = (((((raw >> 4) - t1) * ((raw >> 4) - t1)) >> 12) * t3) >> 14
    return var1 + var2


def centicelsius(fine: int) -> int:
    return (fine * 5 + 128) >> 8


def pascal_q8(raw: int, fine: int, own: Calibration) -> int:
    """In 1/256 Pa."""
    p1, p2, p3, p4, p5, p6, p7, p8, p9 = own.p
    var1 = fine - 128000
    var2 = var1 * var1 * p6
    var2 = var2 + ((var1 * p5) << 17)
    var2 = var2 + (p4 << 35)
    var1 = ((var1 * var1 * p3) >> 8) + ((var1 * p2) << 12)
    var1 = (((1 << 47) + var1) * p1) >> 33
    if var1 == 0:
        return 0
    numerator = (((1048576 - raw) << 31) - var2) * 3125
    p = abs(numerator) // abs(var1) * (1 if (numerator < 0) == (var1 < 0) else -1)
    var1 = (p9 * (p >> 13) * (p >> 13)) >> 25
    var2 = (p8 * p) >> 19
    return ((p + var1 + var2) >> 8) + (p7 << 4)


def percent_q10(raw: int, fine: int, own: Calibration) -> int:
    """In 1/1024 %."""
    h1, h2, h3, h4, h5, h6 = own.h
    v = fine - 76800
    left = ((raw << 14) - (h4 << 20) - (h5 * v) + 16384) >> 15
    right = ((((((v * h6) >> 10) * (((v * h3) >> 11) + 32768)) >> 10) + 2097152) * h2 + 8192) >> 14
    v = left * right
    v = v - (((((v >> 15) * (v >> 15)) >> 7) * h1) >> 4)
    return min(max(v, 0), 419430400) >> 12
