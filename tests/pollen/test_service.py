"""The services' common command line: settings shown with secrets masked, exit codes, signals, logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = {
    "edge_client": 'device = "pi-1"\nfleet = "f"\nmodel = "m"\n[broker]\nusername = "pi-1"\npassword = "hunter2"\n',
    "gateway": 'fleet = "f"\n[broker]\nusername = "gateway-1"\npassword = "hunter2"\n',
    "server": 'bundle = "m.bundle"\nstate_dir = "state"\n',
}


def run(role: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"{role}.command", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("role", ROLES)
def test_the_effective_settings_are_shown_with_secrets_masked_and_variables_applied(role: str, tmp_path: Path) -> None:
    path = tmp_path / "role.toml"
    path.write_text(ROLES[role])
    done = run(role, "--config", str(path), "--show-config", POLLEN_LOGGING_LEVEL="error")
    assert (done.returncode, done.stderr) == (0, "")
    assert 'level = "error"' in done.stdout
    assert "hunter2" not in done.stdout
    assert ("********" in done.stdout) == ("hunter2" in ROLES[role])


@pytest.mark.parametrize("role", ROLES)
def test_wrong_settings_are_one_line_on_stderr_and_exit_code_2(role: str, tmp_path: Path) -> None:
    path = tmp_path / "role.toml"
    path.write_text('colour = "red"\n' + ROLES[role])
    done = run(role, "--config", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {path}: colour is no setting here; known: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("role", ROLES)
def test_wrong_usage_is_exit_code_2_and_help_has_an_example(role: str) -> None:
    assert run(role, "--colour").returncode == 2
    done = run(role, "--help")
    assert done.returncode == 0
    assert "example" in done.stdout
    assert "--show-config" in done.stdout


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(ROLES["server"])
    done = run("server", "--config", str(path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/m.bundle: ")
    assert "Traceback" not in done.stderr


SERVICE = """
import sys, threading
from dataclasses import dataclass, field
import logging
from pollen import service
from pollen.service import Logging

@dataclass(frozen=True)
class Settings:
    place: str = "here"
    logging: Logging = field(default_factory=Logging)

def serve(settings, stop, reloads):
    logging.getLogger("demo").info("started\\non two lines")
    print("up", flush=True)
    while not stop.wait(0.05):
        reloads.take()
    if "--stubborn" in sys.argv:
        print("stopping", flush=True)
        threading.Event().wait(30)
    print("finished what was accepted", flush=True)

sys.exit(service.run([a for a in sys.argv[1:] if a != "--stubborn"], name="demo", description="d", examples="e",
                     cls=Settings, serve=serve))
"""


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_service_finish_what_it_accepted(number: int) -> None:
    process = start()
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert output == "finished what was accepted\n"
    assert process.returncode == 0


def test_a_second_signal_ends_a_service_that_does_not_finish() -> None:
    process = start("--stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - started < 10


def test_a_hangup_reads_the_settings_again_and_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text('[logging]\nlevel = "info"\n')
    process = start("--config", str(path))
    assert process.stderr is not None
    assert "started" in process.stderr.readline()
    for text, told in (
        ("colour = 1", "settings not reloaded"),
        ('place = "elsewhere"', "only a restart takes it over: place"),
        ('[logging]\nformat = "json"', '"message": "settings reloaded: logging.format"'),
    ):
        path.write_text(text)
        process.send_signal(signal.SIGHUP)
        line = process.stderr.readline()
        if "settings reloaded: nothing" in line:
            line = process.stderr.readline()
        assert told in line
    process.terminate()
    assert process.wait(20) == 0


def test_logs_are_json_lines_when_asked_for() -> None:
    process = start(POLLEN_LOGGING_FORMAT="json")
    process.terminate()
    _, errors = process.communicate(timeout=20)
    (line,) = errors.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("info", "demo", "started\non two lines")
    assert entry["time"].endswith("Z")


def test_systemd_is_told_through_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pollen import systemd

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1")
        assert listener.recv(100) == b"READY=1"
        monkeypatch.setenv("WATCHDOG_USEC", "40000000")
        watchdog = systemd.Watchdog()
        watchdog.beat()
        watchdog.beat()
        systemd.notify("STOPPING=1")
        assert [listener.recv(100), listener.recv(100)] == [b"WATCHDOG=1", b"STOPPING=1"]
        watchdog.end()


def test_a_loop_that_hangs_is_not_covered_up_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pollen import systemd

    now = [1000.0]
    monkeypatch.setattr(systemd.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(systemd.Watchdog, "_fed_at", 0.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        first, second = systemd.Watchdog(), systemd.Watchdog()

        def fed() -> bool:
            try:
                return listener.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return False

        try:
            first.beat()
            assert fed()
            second.beat()
            now[0] += 2
            first.beat()
            assert fed()
            now[0] += 2
            first.beat()
            assert not fed(), "the second has not beaten since"
            second.beat()
            assert fed()
            now[0] += 2
            second.end()
            first.beat()
            assert fed(), "one that has ended is not waited for"
        finally:
            for loop in (first, second):
                loop.end()
