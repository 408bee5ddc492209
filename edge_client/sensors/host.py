"""The telemetry of the machine itself, through psutil: a sensor every computer has."""

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil

from edge_client.sensors import Channel, Options, Reading
from edge_client.sensors.options import parse
from pollen.errors import SensorError

CHANNELS: Final = (
    Channel("core_load", "%"),
    Channel("total_load", "%"),
    Channel("memory", "%"),
    Channel("load_1min", "processes"),
    Channel("net_receive", "log(1 + kB/s)"),
    Channel("net_send", "log(1 + kB/s)"),
    Channel("disk_write", "log(1 + kB/s)"),
    Channel("context_switches", "log(1 + 1/s)"),
)
TEMPERATURE: Final = Channel("temperature", "°C")
_SHORTEST_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class HostOptions:
    """`core`: whose load; `interface` and `disk`: whose traffic, "" for all together; `temperature`: adds a channel.

    The channels are otherwise fixed, so that all devices of a fleet share one model.
    """

    core: int = 0
    interface: str = ""
    disk: str = ""
    temperature: bool = False

    def __post_init__(self) -> None:
        cores = psutil.cpu_count() or 1
        if not 0 <= self.core < cores:
            raise ValueError(f"core = {self.core}: this machine has cores 0 to {cores - 1}")


@dataclass(frozen=True, slots=True)
class _Counters:
    """Counters that only grow, at one moment; loads in seconds, traffic in bytes."""

    moment: float
    core_busy: float
    core_total: float
    all_busy: float
    all_total: float
    received: int
    sent: int
    written: int
    switches: int


class HostSensor:
    """Loads are percentages of the time since the last reading; rates come from differences of counters.

    Traffic, disk and context-switch rates span five orders of magnitude and are mostly near zero, so they are
    compressed with log(1 + rate); otherwise a single burst sets the channel's variance for hours.
    """

    def __init__(self, options: Options) -> None:
        self._options = parse(HostOptions, options)
        self._channels = (*CHANNELS, TEMPERATURE) if self._options.temperature else CHANNELS
        self._last = self._counters()

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Eight channels, nine with the temperature."""
        return self._channels

    def read(self) -> Reading:
        """One sample of all channels. SensorError when the interface, disk or thermometer isn't there."""
        last, now = self._last, self._counters()
        self._last = now
        seconds = max(now.moment - last.moment, _SHORTEST_S)
        values = [
            _percent(now.core_busy - last.core_busy, now.core_total - last.core_total),
            _percent(now.all_busy - last.all_busy, now.all_total - last.all_total),
            psutil.virtual_memory().percent,
            psutil.getloadavg()[0],
            _compressed((now.received - last.received) / 1000 / seconds),
            _compressed((now.sent - last.sent) / 1000 / seconds),
            _compressed((now.written - last.written) / 1000 / seconds),
            _compressed((now.switches - last.switches) / seconds),
        ]
        if self._options.temperature:
            values.append(temperature_celsius())
        return Reading(np.array([values], np.float32))

    def close(self) -> None:
        """Nothing is held open."""

    def _counters(self) -> _Counters:
        cores = psutil.cpu_times(percpu=True)
        busy = [sum(times[:]) - times.idle - getattr(times, "iowait", 0.0) for times in cores]
        totals = [sum(times[:]) for times in cores]
        core = self._options.core
        if core >= len(cores):
            raise SensorError(f"core {core} is not there any more; only {len(cores)} are online")
        received, sent = self._traffic()
        return _Counters(
            moment=time.monotonic(),
            core_busy=busy[core],
            core_total=totals[core],
            all_busy=sum(busy),
            all_total=sum(totals),
            received=received,
            sent=sent,
            written=self._written(),
            switches=psutil.cpu_stats().ctx_switches,
        )

    def _traffic(self) -> tuple[int, int]:
        name = self._options.interface
        if not name:
            total = psutil.net_io_counters()
            return (total.bytes_recv, total.bytes_sent) if total else (0, 0)
        counters = psutil.net_io_counters(pernic=True).get(name)
        if counters is None:
            raise SensorError(f"network interface {name!r} is not there; `ip link` lists those that are")
        return counters.bytes_recv, counters.bytes_sent

    def _written(self) -> int:
        name = self._options.disk
        if not name:
            total = psutil.disk_io_counters()
            return total.write_bytes if total else 0  # a container may show no disks
        counters = (psutil.disk_io_counters(perdisk=True) or {}).get(name)
        if counters is None:
            raise SensorError(f"disk {name!r} is not there; `lsblk` lists those that are")
        return int(counters.write_bytes)


def temperature_celsius() -> float:
    """The hottest thermometer in °C. Raises SensorError when the machine has none."""
    found = [entry.current for entries in psutil.sensors_temperatures().values() for entry in entries]
    if not found:
        raise SensorError("this machine shows no thermometer; set sensor.options.temperature = false")
    return float(max(found))


def _percent(part: float, whole: float) -> float:
    return 100.0 * min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0


def _compressed(rate: float) -> float:
    return math.log1p(max(rate, 0.0))
