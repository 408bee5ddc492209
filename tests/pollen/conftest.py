"""How hypothesis runs in these tests: without a deadline, since the machine is shared; bounded times are measured.
And what the tests of `pollen broker-config` start from."""

import os
import pwd
import subprocess

import hypothesis
import pytest

from firmware_scripts.authority.authority import Authority
from tests.pollen.broker_folder import HOST
from tests.pollen.mqtt_session import WAIT_S

hypothesis.settings.register_profile("pollen", deadline=None)
hypothesis.settings.load_profile("pollen")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = Authority.create(tmp_path_factory.mktemp("authority") / "ca", "f")
    made.issue("broker", "broker", hosts=[HOST, "broker.example"])
    made.issue("server", "server", hosts=[HOST])
    for name, role in (("device-1", "device"), ("device-2", "device"), ("gateway-1", "gateway"), ("ops", "observer")):
        made.issue(name, role)
    return made


@pytest.fixture
def arguments(authority, tmp_path):
    """The words of `pollen broker-config`, with `changes` to the options; None leaves one out."""

    def words(output=None, **changes):
        issued = authority.folder / "issued"
        options = {
            "fleet": "f",
            "ca": authority.ca,
            "certificate": issued / "broker.pem",
            "key": issued / "broker.key",
            "crl": authority.crl,
            "gateway": "gateway-1",
            "observer": "ops",
            "state": tmp_path / "state",
            "user": pwd.getpwuid(os.geteuid()).pw_name,
        } | changes
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        return ["broker-config", *given, "-o", str(output or tmp_path / "broker")]

    return words


@pytest.fixture
def run(mosquitto_binary, tmp_path, wait_until):
    """Starts Mosquitto on a folder as it is, as `user`; they are ended after the test."""
    started = []

    def start(configuration, user=None):
        errors = (tmp_path / f"errors-{len(started)}").open("wb")
        started.append(subprocess.Popen([mosquitto_binary, "-c", configuration], stderr=errors, user=user, group=user))
        errors.close()
        wait_until(lambda: b"running" in (tmp_path / f"errors-{len(started) - 1}").read_bytes(), WAIT_S, "it runs")
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(WAIT_S)
