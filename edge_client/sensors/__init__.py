"""Sensors: one small interface, and how a sensor is found by its name.

docs/sensors.md has those that are built in; any installed package brings more through an entry point in the group
"pollen.sensors", a callable that takes the `[sensor] options` and returns a `Sensor`.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from pollen.errors import SettingsError
from pollen.messages import Scalar

GROUP: Final = "pollen.sensors"

Options = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Channel:
    """One measured quantity, its unit, and the range it can have; a value outside is a fault, like NaN. A sensor's
    channels have names, each another one."""

    name: str
    unit: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """`values` float32 [k, C]: k >= 1 samples of all channels, oldest first; most sensors give k = 1, those with a
    FIFO a burst. NaN stands for a channel without a value. `label` is the class (int) or the target (float) of the
    last sample, where there is one. `time`: seconds of the sensor's own clock at the last sample, where it has one; it
    may stand still or go backwards, and is only used to find gaps and readings delivered twice."""

    values: npt.NDArray[np.float32]
    label: float | int | None = None
    time: float | None = None


class EndOfStreamError(Exception):
    """A recording has no more readings."""


class Sensor(Protocol):
    """Something that can be read. Used by one thread only."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The C channels of every reading; fixed while the sensor lives."""

    def read(self) -> Reading | None:
        """The newest values, None when there are none since the last call.

        Raises SensorError when the hardware fails, and is then closed and opened again; EndOfStreamError at the end of
        a recording.
        """

    def close(self) -> None:
        """Release the hardware."""


_BUILT_IN: Final = {
    "bme280": ("edge_client.sensors.bme280", "Bme280Sensor"),
    "host": ("edge_client.sensors.host", "HostSensor"),
    "hwmon": ("edge_client.sensors.hwmon", "HwmonSensor"),
    "iio": ("edge_client.sensors.iio", "IioSensor"),
    "mqtt": ("edge_client.sensors.mqtt_topics", "MqttSensor"),
    "replay": ("edge_client.sensors.replay", "ReplaySensor"),
    "serial": ("edge_client.sensors.serial_line", "SerialSensor"),
    "synthetic": ("edge_client.sensors.synthetic", "SyntheticSensor"),
}


def find(kind: str) -> Callable[[Options], Sensor]:
    """What opens sensors of `kind`. Raises SettingsError when there is none of that name.

    The opener raises SettingsError for options it can't use and SensorError when the hardware isn't there.
    """
    if kind in _BUILT_IN:
        module, name = _BUILT_IN[kind]
        opener: Callable[[Options], Sensor] = getattr(importlib.import_module(module), name)
        return opener
    # Costs memory, so only for devices that use it.
    metadata = importlib.import_module("importlib.metadata")
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if kind not in entries:
        known = ", ".join(sorted({*_BUILT_IN, *entries}))
        raise SettingsError(f"sensor.kind = {kind!r} is no sensor here; known: {known}")
    try:
        opener = entries[kind].load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"sensor.kind = {kind!r}: its package can't be loaded: {error}") from error
    return opener
