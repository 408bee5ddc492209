"""The kernel's Industrial I/O devices: accelerometers, gyroscopes, converters, light and environmental sensors.

As described in the kernel's Documentation/ABI/testing/sysfs-bus-iio: `_input` is the value itself, `_raw` becomes it as
(raw + offset) * scale. Read one by one through sysfs; the kernel's buffers, for kilohertz, are not used.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.channel_list import listed
from edge_client.sensors.number import finite
from edge_client.sensors.options import parse
from edge_client.sensors.sysfs import SysfsFolder, find_device
from pollen.errors import SensorError

_ANY: Final = (-math.inf, math.inf)
# By the attribute's type: its unit here, how many of the kernel's make one, and what a real sensor can measure.
_TYPES: Final[dict[str, tuple[str, float, tuple[float, float]]]] = {
    "accel": ("m/s²", 1.0, (-5000.0, 5000.0)),
    "gravity": ("m/s²", 1.0, (-100.0, 100.0)),
    "anglvel": ("rad/s", 1.0, (-500.0, 500.0)),
    "angl": ("rad", 1.0, _ANY),
    "incli": ("°", 1.0, (-360.0, 360.0)),
    "magn": ("G", 1.0, (-1000.0, 1000.0)),
    "temp": ("°C", 1e3, (-273.15, 3000.0)),
    "humidityrelative": ("%", 1e3, (0.0, 100.0)),
    "pressure": ("kPa", 1.0, (0.0, 1e6)),
    "illuminance": ("lx", 1.0, (0.0, 1e6)),
    "voltage": ("V", 1e3, _ANY),
    "current": ("A", 1e3, _ANY),
    "power": ("W", 1e3, _ANY),
    "resistance": ("Ω", 1.0, (0.0, math.inf)),
    "capacitance": ("nF", 1.0, _ANY),
    "concentration": ("%", 1.0, (0.0, 100.0)),
    "distance": ("m", 1.0, (0.0, math.inf)),
}
_ATTRIBUTE: Final = re.compile(r"in_(?P<name>.+)_(?P<form>raw|input)")
# Derived from other channels, or four numbers in one attribute.
_NOT_MEASURED: Final = re.compile(r".*_(peak|trough|mean)|rot_quaternion")


@dataclass(frozen=True, slots=True)
class IioOptions:
    """`device`: its driver's name or its label (`cat /sys/bus/iio/devices/*/name`), as its number changes from boot to
    boot; `at`: where it is, such as "1-0076" on I2C, when there are several of that name; `channels`: which, in this
    order, separated by commas, such as "accel_x, accel_y, temp"; "": all."""

    device: str
    at: str = ""
    channels: str = ""

    def __post_init__(self) -> None:
        if not self.device:
            raise ValueError("device is empty; set it to a name from `cat /sys/bus/iio/devices/*/name`")
        listed("channels", self.channels)


@dataclass(frozen=True, slots=True)
class _Input:
    """value = (attribute + offset) * scale, in `channel.unit`."""

    channel: Channel
    attribute: str
    offset: float
    scale: float


class IioSensor:
    """One sample of all channels a reading, one after the other; one that can't be read for the moment is NaN.

    Scales and offsets are those of the moment of opening. Raises SensorError when the device is not there; `root` is
    where the kernel shows all devices.
    """

    def __init__(self, options: Options, root: Path = Path("/sys/bus/iio/devices")) -> None:
        chosen = parse(IioOptions, options)
        self._folder = find_device(root, "iio:device*", chosen.device, chosen.at, option="device", location=_location)
        try:
            self._inputs = _inputs(self._folder, listed("channels", chosen.channels))
        except SensorError:
            self._folder.close()
            raise

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As the kernel calls them, without "in_"; units SI or °C, %, G, °."""
        return tuple(item.channel for item in self._inputs)

    def read(self) -> Reading:
        """One sample. SensorError when the device is gone or none of its channels can be read."""
        values = self._folder.values([item.attribute for item in self._inputs])
        scaled = [finite((value + item.offset) * item.scale) for value, item in zip(values, self._inputs, strict=True)]
        return Reading(np.array([scaled], np.float32))

    def close(self) -> None:
        """Release the device's folder."""
        self._folder.close()


def _inputs(folder: SysfsFolder, chosen: list[str]) -> list[_Input]:
    """The chosen channels of the device, all when none is. SensorError for one it hasn't got."""
    attributes = folder.attributes()
    # "input" comes before "raw": of a channel that has both, the processed value is left.
    matches = [match for match in map(_ATTRIBUTE.fullmatch, reversed(attributes)) if match]
    found = {match["name"]: match for match in matches if not _NOT_MEASURED.fullmatch(match["name"])}
    chosen = chosen or sorted(found)
    missing = [name for name in chosen if name not in found]
    if missing or not chosen:
        known = ", ".join(sorted(found)) or "none"
        raise SensorError(f"{folder.title} has no channel {', '.join(missing) or 'at all'}; it has: {known}")
    return [_input(folder, found[name], attributes) for name in chosen]


def _input(folder: SysfsFolder, match: re.Match[str], attributes: list[str]) -> _Input:
    name = match["name"]
    kind = re.split(r"[^a-z]", name, maxsplit=1)[0]
    unit, divisor, limits = _TYPES.get(kind, ("", 1.0, _ANY))
    offset, scale = 0.0, 1.0
    if match["form"] == "raw":
        offset = _factor(folder, name, "offset", attributes, 0.0)
        scale = _factor(folder, name, "scale", attributes, 1.0)
    return _Input(Channel(name, unit, *limits), match[0], offset, scale / divisor)


def _factor(folder: SysfsFolder, name: str, what: str, attributes: list[str], default: float) -> float:
    """The channel's own scale or offset, or the nearest it shares with others; `default` when it has none."""
    for shared in _sharing(name):
        attribute = f"in_{shared}_{what}"
        if attribute in attributes:
            return folder.values([attribute])[0]
    return default


def _sharing(name: str) -> Iterator[str]:
    """What the scale of a channel may be called: accel_x, accel; voltage0-voltage1, voltage-voltage."""
    yield name
    unnumbered = re.sub(r"(?<=[a-z])\d+", "", name)
    yield unnumbered
    while "_" in unnumbered:
        unnumbered = unnumbered.rpartition("_")[0]
        yield unnumbered


def _location(folder: Path) -> str:
    """What the device hangs on: an I2C or SPI address."""
    return folder.resolve().parent.name
