"""A sensor of one's own, whole: the time the disk's filesystem takes to answer, in microseconds.

Name it in your package's pyproject.toml, install the package on the device, and set `kind = "latency"`:

    [project.entry-points."pollen.sensors"]
    latency = "own_sensor:LatencySensor"
"""

import os
import time

import numpy as np

from edge_client.sensors import Channel, Options, Reading


class LatencySensor:
    """Times one statvfs call per reading."""

    channels = (Channel("filesystem_latency", "µs"),)

    def __init__(self, options: Options) -> None:
        self._path = str(options.get("path", "/"))

    def read(self) -> Reading:
        """One sample of one channel."""
        started = time.perf_counter()
        os.statvfs(self._path)
        return Reading(np.array([[1e6 * (time.perf_counter() - started)]], np.float32))

    def close(self) -> None:
        """Nothing is held open."""
