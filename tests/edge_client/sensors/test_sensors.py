"""How sensors are found, and the one every computer has."""

import threading

import numpy as np
import psutil
import pytest

from edge_client import sensors
from edge_client.clock import SystemClock
from edge_client.sensors.host import CHANNELS, HostSensor
from pollen.errors import SensorError, SettingsError


def test_the_host_sensor_reads_real_values() -> None:
    one = HostSensor({"core": 0})
    assert one.channels == CHANNELS
    busy = threading.Event()
    values = one.read().values
    deadline = SystemClock().monotonic() + 0.3
    while SystemClock().monotonic() < deadline:
        busy.is_set()
    values = one.read().values
    assert values.shape == (1, len(CHANNELS))
    assert np.isfinite(values).all()
    by_name = dict(zip([channel.name for channel in CHANNELS], values[0], strict=True))
    assert 0 <= by_name["core_load"] <= 100
    assert 0 < by_name["total_load"] <= 100, "this very loop is load"
    assert by_name["memory"] == pytest.approx(psutil.virtual_memory().percent, abs=10)
    assert by_name["context_switches"] > 0


def test_the_host_sensor_refuses_what_isnt_there() -> None:
    with pytest.raises(SettingsError, match="core = 9999"):
        HostSensor({"core": 9999})
    with pytest.raises(SettingsError, match="core"):
        HostSensor({"core": "first"})
    with pytest.raises(SettingsError, match="colour"):
        HostSensor({"colour": 1})
    with pytest.raises(SensorError, match="nowhere0"):
        HostSensor({"interface": "nowhere0"})


def test_an_unknown_sensor_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"known: .*host, .*replay, .*synthetic"):
        sensors.find("thermopile")
