"""The whole device while its sensor fails: hangs, is pulled out, comes back as another one."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pollen.bundle import Bundle
from tests.edge_client.fleet import Device, Server, write_settings

PROJECT = Path(__file__).parents[2]

SENSOR = '''
import itertools, math, threading
from pathlib import Path
import numpy as np
from edge_client.sensors import Channel, Reading

class Faulty:
    """Does at each read what its file says: ok, three (channels), pulled, or hang."""

    def __init__(self, options):
        self._file = Path(options["file"])
        self._step = itertools.count()
        count = {"pulled": 0, "three": 3}.get(self._file.read_text(), 2)
        if not count:
            raise OSError(19, "No such device")
        self.channels = tuple(Channel(name, "V") for name in "abc"[:count])

    def read(self):
        state = self._file.read_text()
        if state == "hang":
            threading.Event().wait()
        if state == "pulled" or (state == "three") != (len(self.channels) == 3):
            raise OSError(5, "Input/output error")
        step = next(self._step)
        return Reading(np.array([[math.sin(step / 3 + n) for n in range(len(self.channels))]], np.float32))

    def close(self):
        pass
'''


class Cable:
    """What the sensor's file says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("ok")

    def set(self, state: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(state)
        new.replace(self._file)


@pytest.fixture
def cable(tmp_path: Path) -> Cable:
    return Cable(tmp_path / "cable")


@pytest.fixture
def one(server: Server, tmp_path: Path, cable: Cable) -> Iterator[Device]:
    """A device whose sensor is an installed package."""
    packages = tmp_path / "packages"
    metadata = packages / "faulty-1.0.dist-info"
    metadata.mkdir(parents=True)
    (packages / "faulty.py").write_text(SENSOR)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pollen.sensors]\nfaulty = faulty:Faulty\n")
    sensor = {"kind": "faulty", "period_s": 0.01, "options": {"file": str(tmp_path / "cable")}}
    path = write_settings(tmp_path / "pi-1", "pi-1", server.port, {"sensor": sensor})
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{packages}"}
    started = Device(sys.executable, path, environment)
    server.wait_for(server.online, 30, f"its birth; log:\n{started.log()}")
    yield started
    started.kill()


def trained(server: Server, bundle: Bundle) -> None:
    server.receipt(server.update(server.task(bundle), 40))


def test_a_sensor_that_hangs_is_reported_and_doesnt_keep_the_device_from_stopping(
    server: Server, bundles: Callable[[str], Bundle], one: Device, cable: Cable
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    trained(server, bundle)
    assert server.wait_for(server.vitals, 20, "vitals")["sensor_silent_s"] < 1
    cable.set("hang")
    server.wait_for(lambda: server.vitals()["sensor_silent_s"] > 3, 30, "the vitals to say so")
    assert one.terminate(30) == 0


def test_a_cable_pulled_out_and_put_back(
    server: Server, bundles: Callable[[str], Bundle], one: Device, cable: Cable
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    trained(server, bundle)
    cable.set("pulled")
    server.wait_for(lambda: server.vitals().get("sensor_failures", 0) >= 2, 30, "failures to be counted")
    assert "No such device" in one.log()
    cable.set("ok")
    server.wait_for(lambda: "sensor opened again" in one.log(), 30, "the sensor again")
    trained(server, bundle)


def test_a_sensor_that_comes_back_as_another_one_doesnt_fit_the_model_until_it_does(
    server: Server, bundles: Callable[[str], Bundle], one: Device, cable: Cable
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    trained(server, bundle)
    cable.set("three")
    server.wait_for(lambda: "the sensor gives 3 channels" in one.log(), 30, "the misfit")
    server.receipt(server.result(server.task(bundle), 30))
    cable.set("ok")
    server.wait_for(lambda: one.log().count("other channels") >= 2, 30, "the first sensor again")
    trained(server, bundle)
    assert one.process.poll() is None
