"""A sensor of one's own, whole: the temperature of the machine's processor, from a file that holds it as one number.

Name it in your package's pyproject.toml, install the package on the device, and set `kind = "soc"`:

    [project.entry-points."pollen.sensors"]
    soc = "own_sensor:SocSensor"
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.options import parse
from pollen.errors import SensorError


@dataclass
class SocOptions:
    """`file`: where the temperature is, in m°C."""

    file: str = "/sys/class/thermal/thermal_zone0/temp"


class SocSensor:
    """Opened again, after a while, whenever it raises SensorError: at the start, or later."""

    channels = (Channel("soc", "°C", low=-40.0, high=125.0),)

    def __init__(self, options: Options) -> None:
        self._file = Path(parse(SocOptions, options).file)
        self.read()

    def read(self) -> Reading:
        """One sample of one channel."""
        try:
            return Reading(np.array([[float(self._file.read_text()) / 1000]], np.float32))
        except (OSError, ValueError) as error:
            raise SensorError(f"{self._file} can't be read: {error}") from error

    def close(self) -> None:
        """Nothing is held open."""
