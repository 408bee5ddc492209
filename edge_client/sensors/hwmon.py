"""The kernel's hardware monitoring chips: temperatures, voltages, currents, power, fans, humidity.

As described in the kernel's Documentation/hwmon/sysfs-interface.rst.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.channel_list import listed
from edge_client.sensors.options import parse
from edge_client.sensors.sysfs import SysfsFolder, find_device
from pollen.errors import SensorError

# By the attribute's type: its unit here, how many of the kernel's make one, and what a real chip can measure: drivers
# give -128 °C or 1,350,000 rpm when nothing is attached.
_TYPES: Final[dict[str, tuple[str, float, float, float]]] = {
    "temp": ("°C", 1e3, -100.0, 250.0),
    "in": ("V", 1e3, -1000.0, 1000.0),
    "curr": ("A", 1e3, -1000.0, 1000.0),
    "power": ("W", 1e6, 0.0, 1e6),
    "fan": ("rpm", 1.0, 0.0, 1e5),
    "humidity": ("%", 1e3, 0.0, 100.0),
}
_INPUT: Final = re.compile(rf"({'|'.join(_TYPES)})(\d+)_input", re.ASCII)


@dataclass(frozen=True, slots=True)
class HwmonOptions:
    """`chip`: what its driver calls it (`cat /sys/class/hwmon/hwmon*/name`), as its number changes from boot to boot;
    `at`: where it is, such as "1-0040" on I2C, when there are several of that name; `inputs`: which, in this order, by
    name ("temp1") or label ("Package id 0"), separated by commas; "": all."""

    chip: str
    at: str = ""
    inputs: str = ""

    def __post_init__(self) -> None:
        if not self.chip:
            raise ValueError("chip is empty; set it to a name from `cat /sys/class/hwmon/hwmon*/name`")
        listed("inputs", self.inputs)


@dataclass(frozen=True, slots=True)
class _Input:
    channel: Channel
    name: str
    divisor: float


class HwmonSensor:
    """One sample of all inputs a reading; an input that can't be read for the moment, or says it is faulty, is NaN.

    Raises SensorError when the chip is not there; `root` is where the kernel shows all chips.
    """

    def __init__(self, options: Options, root: Path = Path("/sys/class/hwmon")) -> None:
        chosen = parse(HwmonOptions, options)
        self._folder = find_device(root, "hwmon*", chosen.chip, chosen.at, option="chip", location=_location)
        try:
            self._inputs = _inputs(self._folder, listed("inputs", chosen.inputs))
            names = {f"{item.name}_{part}" for item in self._inputs for part in ("input", "fault")}
            self._attributes = [name for name in self._folder.attributes() if name in names]
        except SensorError:
            self._folder.close()
            raise

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One an input, called as it was chosen; °C, V, A, W, rpm or %."""
        return tuple(item.channel for item in self._inputs)

    def read(self) -> Reading:
        """One sample. SensorError when the chip is gone or none of its inputs can be read."""
        values = dict(zip(self._attributes, self._folder.values(self._attributes), strict=True))
        scaled = [
            math.nan if values.get(f"{item.name}_fault") == 1.0 else values[f"{item.name}_input"] / item.divisor
            for item in self._inputs
        ]
        return Reading(np.array([scaled], np.float32))

    def close(self) -> None:
        """Release the chip's folder."""
        self._folder.close()


def _inputs(folder: SysfsFolder, chosen: list[str]) -> list[_Input]:
    """The chosen inputs of the chip, all when none is. SensorError for one it hasn't got."""
    found = _by_name_and_label(folder)
    chosen = chosen or list(dict.fromkeys(found.values()))
    missing = [name for name in chosen if name not in found]
    if missing or not chosen:
        known = ", ".join(found) or "none"
        raise SensorError(f"{folder.title} has no input {', '.join(missing) or 'at all'}; it has: {known}")
    inputs = []
    for name in chosen:
        unit, divisor, low, high = _TYPES[found[name].rstrip("0123456789")]
        inputs.append(_Input(Channel(name, unit, low, high), found[name], divisor))
    return inputs


def _by_name_and_label(folder: SysfsFolder) -> dict[str, str]:
    """Each input's name ("temp1") by that name and by its label, where no other has that."""
    matches = [match for match in map(_INPUT.fullmatch, folder.attributes()) if match]
    matches.sort(key=lambda match: (list(_TYPES).index(match[1]), int(match[2])))
    names = [match[1] + match[2] for match in matches]
    found = dict(zip(names, names, strict=True))
    for name in names:
        try:
            label = folder.text(f"{name}_label")
        except OSError:
            continue
        if label:
            found.setdefault(label, name)
    return found


def _location(folder: Path) -> str:
    """What is behind the chip: an I2C address, a PCI slot, a thermal zone."""
    return (folder / "device").resolve().name
