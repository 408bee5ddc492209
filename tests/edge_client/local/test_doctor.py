"""`pollen-edge doctor`, run as a user does, on a machine where something is wrong."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_client.local import doctor as doctor_module
from edge_client.local.doctor import certificate_end
from edge_client.settings import EdgeSettings
from tests.edge_client.fleet import Device, Server, stream, write_settings

PROJECT = Path(__file__).parents[3]


def doctor(settings: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "edge_client.command", "doctor", "--config", str(settings), *words],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def findings(settings: Path) -> dict[str, dict[str, Any]]:
    code, out, err = doctor(settings, "--json")
    assert out, err
    found = {one["what"]: one for one in json.loads(out)}
    assert code == (0 if all(one["ok"] for one in found.values()) else 1), err
    assert all(one["fix"] for one in found.values() if not one["ok"])
    return found


def test_a_machine_in_order_lacks_only_the_agent(server: Server, tmp_path: Path) -> None:
    found = findings(write_settings(tmp_path / "pi-1", "pi-1", server.port, {}))
    wrong = {name for name, one in found.items() if not one["ok"]}
    assert wrong - {"clock"} == {"agent"}  # a container's clock is often not known to be right
    assert {"disk", "interpreter", "model", "sensor", "broker", "login"} <= set(found)
    assert "channel_0" in found["sensor"]["seen"]


def test_each_line_for_a_person_has_its_fix(server: Server, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "pi-1", "pi-1", server.port, {"sensor": {"kind": "no-such-sensor"}})
    code, out, _ = doctor(settings)
    assert code == 1
    lines = out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("FAIL sensor"))
    assert "no-such-sensor" in lines[place]
    assert "fix: check [sensor]" in lines[place + 1]


def test_a_broker_that_is_not_there_is_found_and_not_waited_for(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = findings(write_settings(tmp_path / "pi-1", "pi-1", port, {}))
    assert not found["broker"]["ok"]
    assert f"127.0.0.1:{port}" in found["broker"]["seen"]
    assert "login" not in found


def test_a_wrong_password_is_found(server: Server, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "pi-1", "pi-1", server.port, {"broker": {"password": "wrong"}})
    found = findings(settings)
    assert not found["login"]["ok"]
    assert "Not authorized" in found["login"]["seen"] or "Bad user name" in found["login"]["seen"]


def test_a_broker_without_tls_is_told_from_one_with_it(server: Server, tmp_path: Path) -> None:
    authority(tmp_path, days=30)
    settings = write_settings(tmp_path / "pi-1", "pi-1", server.port, {"broker": {"ca": str(tmp_path / "ca.pem")}})
    found = findings(settings)
    assert not found["tls"]["ok"]
    assert "8883" in found["tls"]["fix"]


def test_a_silent_sensor_is_found(server: Server, tmp_path: Path) -> None:
    (tmp_path / "silent.npz").write_bytes(b"no archive")
    options = {"file": str(tmp_path / "silent.npz")}
    found = findings(write_settings(tmp_path / "pi-1", "pi-1", server.port, {"sensor": {"options": options}}))
    assert not found["sensor"]["ok"]
    assert "silent.npz" in found["sensor"]["seen"]


def test_an_agent_that_answers_nobody_keeps_its_sensor_and_its_session(
    server: Server, device: Callable[..., Device]
) -> None:
    one = device(local={"socket": "off"})
    server.wait_for(server.online, 20, "the device's birth")
    found = findings(one.settings_file)
    assert found["agent"]["ok"]
    assert not {"sensor", "login"} & set(found)
    assert "reconnect" not in one.log()
    assert one.log().count(": connected to") == 1


def test_what_the_running_agent_complains_of_is_found(
    server: Server, device: Callable[..., Device], tmp_path: Path
) -> None:
    one = device(sensor={"options": {"file": str(stream(tmp_path, rows=5))}})
    server.wait_for(lambda: "stream has ended" in one.log(), 30, "the recording's end")
    assert findings(one.settings_file)["agent"]["seen"] == "the sensor's recording has ended"


def test_files_that_are_another_users_are_found_before_anything_is_lost(tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "pi-1", "pi-1", 1, {})
    outbox = tmp_path / "pi-1" / "state" / "outbox.sqlite"
    outbox.parent.mkdir()
    outbox.touch(0o444)
    # Root may write anything; without these capabilities it is a user like others.
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-m", "edge_client.command"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    for words, code in ([], 2), (["doctor"], 1):
        done = subprocess.run(
            [*command, *words, "--config", str(settings)],
            capture_output=True, text=True, timeout=120, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert f"{outbox} can't be written by this user" in done.stdout + done.stderr
        assert "chown -R" in done.stdout + done.stderr


def test_a_sensor_that_hangs_while_opening_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_module, "READ_S", (0.1, 0.2))
    monkeypatch.setattr(doctor_module, "HANGS_S", 0.1)
    monkeypatch.setattr(doctor_module.sensors, "find", lambda _kind: lambda _options: threading.Event().wait())
    (finding,) = doctor_module._sensor(EdgeSettings("pi-1", "test", "telemetry", tmp_path))
    assert not finding.ok
    assert finding.seen == "host hangs"


def test_settings_that_cannot_be_read_are_exit_code_2(tmp_path: Path) -> None:
    code, _, err = doctor(tmp_path / "missing.toml")
    assert code == 2
    assert "no such settings file" in err


@pytest.mark.parametrize("days", [1, 400])
def test_the_end_of_a_certificate_is_read(tmp_path: Path, days: int) -> None:
    path = authority(tmp_path, days)
    ends = certificate_end(path)
    assert ends is not None
    assert abs(ends - time.time() - days * 86400) < 300


def test_a_file_that_is_no_certificate_has_no_end(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    assert certificate_end(tmp_path / "x.pem") is None
    assert certificate_end(tmp_path / "missing.pem") is None


def authority(folder: Path, days: int) -> Path:
    """A certificate of `days` days that signed itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=test", "-days", str(days), "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "ca.pem"
