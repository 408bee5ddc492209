"""All sensors, the example among them, through the checks of check_sensor.py."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge_client import sensors
from examples.own_sensor import SocSensor
from pollen import topics
from pollen.mosquitto import Account
from tests.edge_client.sensors import check_sensor, sysfs_tree
from tests.edge_client.sensors.check_sensor import Rig
from tests.edge_client.sensors.serial_device import SerialDevice
from tests.edge_client.sensors.simulated_bme280 import SimulatedBme280

PROJECT = Path(__file__).parents[3]
OWN = "own"  # the example


def host(_request: pytest.FixtureRequest, _folder: Path) -> Rig:
    return Rig(sensors.find("host"), {"core": 0})


def synthetic(_request: pytest.FixtureRequest, _folder: Path) -> Rig:
    return Rig(sensors.find("synthetic"), {"channels": 3})


def replay(_request: pytest.FixtureRequest, folder: Path) -> Rig:
    np.savez(folder / "data.npz", X=np.arange(24, dtype=np.float32).reshape(12, 2))
    return Rig(sensors.find("replay"), {"file": str(folder / "data.npz"), "loop": True})


def hwmon(_request: pytest.FixtureRequest, sys: Path) -> Rig:
    folder = sysfs_tree.hwmon(sys, 2, {"name": "cpu_thermal", "temp1_input": "48000", "in0_input": "5000"})
    opener = partial(sensors.find("hwmon"), root=sys / "class" / "hwmon")
    return _of_sysfs(opener, {"chip": "cpu_thermal", "inputs": "temp1,in0"}, folder)


def iio(_request: pytest.FixtureRequest, sys: Path) -> Rig:
    folder = sysfs_tree.iio(sys, 0, {"name": "mpu6050", "in_accel_x_raw": "7", "in_accel_scale": "0.5"})
    opener = partial(sensors.find("iio"), root=sys / "bus" / "iio" / "devices")
    return _of_sysfs(opener, {"device": "mpu6050", "channels": "accel_x"}, folder)


def _of_sysfs(opener: Callable[..., Any], options: dict[str, Any], folder: Path) -> Rig:
    away = folder.with_name("away")

    def unplug() -> None:
        away.mkdir()
        for path in folder.iterdir():
            path.rename(away / path.name)

    def replug() -> None:
        for path in away.iterdir():
            path.rename(folder / path.name)

    return Rig(opener, options, unplug=unplug, replug=replug)


def bme280(_request: pytest.FixtureRequest, _folder: Path) -> Rig:
    chip = SimulatedBme280()
    return Rig(
        partial(sensors.find("bme280"), open_bus=chip.open),
        {"bus": 1, "humidity": True},
        unplug=partial(setattr, chip, "wired", False),
        replug=partial(setattr, chip, "wired", True),
    )


def serial(request: pytest.FixtureRequest, folder: Path) -> Rig:
    pytest.importorskip("serial")
    device = SerialDevice(folder / "ttyUSB0")
    request.addfinalizer(device.unplug)
    return Rig(
        sensors.find("serial"),
        {"port": str(device.port), "channels": "t, h", "baud": 115200},
        stimulate=partial(device.write, "\n1,2\n3,4\n"),
        unplug=device.unplug,
        replug=device.plug_in,
    )


def mqtt_topics(request: pytest.FixtureRequest, _folder: Path) -> Rig:
    accounts = [Account("gadget", "secret-gadget", "gateway"), Account("pi", "secret-pi", "observer")]
    broker = request.getfixturevalue("broker")(accounts)
    gadget = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="gadget")
    gadget.username_pw_set("gadget", "secret-gadget")
    gadget.reconnect_delay_set(1, 1)
    gadget.connect("127.0.0.1", broker.port)
    gadget.loop_start()
    request.addfinalizer(gadget.loop_stop)
    topic = topics.model("test", "home", "weights")
    options = {"channels": f"t={topic}:t", "port": broker.port, "username": "pi", "password": "secret-pi"}
    return Rig(
        sensors.find("mqtt"),
        options,
        stimulate=lambda: (gadget.publish(topic, '{"t": 21.5}'), None)[1],
        unplug=broker.stop,
        replug=broker.start,
    )


def own(_request: pytest.FixtureRequest, folder: Path) -> Rig:
    file = folder / "temp"
    file.write_text("48312\n")
    return Rig(
        SocSensor,
        {"file": str(file)},
        unplug=file.unlink,
        replug=lambda: (file.write_text("50000\n"), None)[1],
    )


RIGS = {
    "bme280": bme280,
    "host": host,
    "hwmon": hwmon,
    "iio": iio,
    "mqtt": mqtt_topics,
    OWN: own,
    "replay": replay,
    "serial": serial,
    "synthetic": synthetic,
}


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return RIGS[request.param](request, tmp_path)


def test_every_built_in_sensor_has_a_rig() -> None:
    assert set(RIGS) - {OWN} == set(sensors._BUILT_IN)


@pytest.mark.parametrize("check", check_sensor.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("rig", RIGS, indirect=True)
def test_every_sensor(rig: Rig, check: Callable[[Rig], None]) -> None:
    check(rig)


@pytest.mark.parametrize("kind", sorted(sensors._BUILT_IN))
def test_a_sensor_is_imported_only_when_it_is_chosen(kind: str) -> None:
    script = (
        "import sys; from edge_client import agent, sensors\n"
        "own = {module for module, _ in sensors._BUILT_IN.values()}\n"
        "early = own & set(sys.modules) | {'serial', 'smbus2'} & set(sys.modules)\n"
        f"sensors.find({kind!r})\n"
        "print(sorted(early), sorted(own & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[] ['{sensors._BUILT_IN[kind][0]}']"
