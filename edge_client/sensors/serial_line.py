"""A device on a serial line that writes its values as lines of text: an Arduino, a gas meter, a weather station."""

import importlib
import termios
import typing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.channel_list import described, listed
from edge_client.sensors.lines import Format, LineReader
from edge_client.sensors.options import parse
from edge_client.sensors.skipped import Skipped
from pollen.errors import SensorError, SettingsError

_CHUNK_BYTES: Final = 4096
_CHUNKS: Final = 16  # of one reading, so that a line that never pauses can't hold it up


@dataclass(frozen=True, slots=True)
class SerialOptions:
    """`port`: best a name that stays, from /dev/serial/by-id/; `baud`: its speed, 8N1; `channels`: their names,
    separated by commas; `format` of a line: "csv" ("21.5,40.1", in the order of `channels`), "pairs" ("t=21.5 h=40") or
    "json", where the names are keys or paths such as "bme.temperature"; `units` and `ranges`: such as "°C, %" and
    "-40..85, 0..100", "" for none."""

    port: str
    channels: str
    baud: int = 9600
    format: str = "csv"
    units: str = ""
    ranges: str = ""

    def __post_init__(self) -> None:
        formats = typing.get_args(Format)
        if self.format not in formats:
            raise ValueError(f"format = {self.format!r} must be one of {', '.join(formats)}")
        if not 50 <= self.baud <= 4_000_000:
            raise ValueError(f"baud = {self.baud} must be from 50 to 4000000, as the device is set")
        if not self.port or "\0" in self.port:
            raise ValueError(f"port = {self.port!r} is no device; `ls /dev/serial/by-id/*` shows those there are")
        if not self.described():
            raise ValueError("channels is empty; name the line's values, such as channels = 't, h'")

    def described(self) -> tuple[Channel, ...]:
        """The channels with their units and ranges."""
        return described(listed("channels", self.channels), self.units, self.ranges)


class SerialSensor:
    """The newest whole line since the last reading; None when no usable one came.

    Raises SensorError when the port is not there, or another program has it.
    """

    def __init__(self, options: Options) -> None:
        chosen = parse(SerialOptions, options)
        self._port = chosen.port
        self._channels = chosen.described()
        form = next(form for form in typing.get_args(Format) if form == chosen.format)
        names = tuple(channel.name for channel in self._channels)
        self._lines = LineReader(form, names, Skipped(f"lines from {chosen.port}"))
        try:
            pyserial = importlib.import_module("serial")
        except ImportError as error:
            raise SettingsError("sensor.kind = 'serial' needs pyserial; pip install 'pollen-fl[sensors]'") from error
        try:
            self._serial: Any = pyserial.Serial(chosen.port, chosen.baud, timeout=0, exclusive=True)
        except (OSError, termios.error) as error:
            raise SensorError(
                f"{chosen.port} can't be opened: {error}; check the cable, and that this user is in the group dialout"
            ) from error
        except ValueError as error:
            raise SettingsError(
                f"sensor.options.baud = {chosen.baud} can't be set on {chosen.port}: {error}"
            ) from error

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As named in the options."""
        return self._channels

    def read(self) -> Reading | None:
        """One sample. SensorError when the device is gone."""
        newest = None
        try:
            for _ in range(_CHUNKS):
                data = self._serial.read(_CHUNK_BYTES)
                if not data:
                    break
                newest = self._lines.feed(data) or newest
        except (OSError, termios.error) as error:
            raise SensorError(f"{self._port} can't be read any more: {error}") from error
        return None if newest is None else Reading(np.array([newest], np.float32))

    def close(self) -> None:
        """Release the port."""
        self._serial.close()
