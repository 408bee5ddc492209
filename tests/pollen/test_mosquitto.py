"""Mosquitto found or brought here, configured for one fleet, and run."""

import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pollen.errors import PollenError, SettingsError
from pollen.mosquitto import Account, Limits, Mosquitto, ensure, find, installation
from tests.pollen.mqtt_session import NOT_AUTHORISED, WAIT_S, Session

PROJECT = Path(__file__).parents[2]
ACCOUNTS = [
    Account("device-1", "one", "device"),
    Account("device-2", "two", "device"),
    Account("gateway-1", "g", "gateway"),
    Account("observer-1", "o", "observer"),
]
PASSWORDS = {account.username: account.password for account in ACCOUNTS}


@pytest.fixture
def session(broker, wait_until):
    opened = []
    running = broker(ACCOUNTS, fleet="f")

    def connect(username, *, password=None, **options):
        password = PASSWORDS[username] if password is None else password
        opened.append(Session(running.port, wait_until, account=(username, password), **options))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("username", "allowed", "denied"),
    [
        (
            "device-1",
            ["f/d/device-1/state", "f/d/device-1/update", "f/d/device-1/result", "f/d/device-1/vitals"],
            ["f/d/device-1/task", "f/d/device-1/receipt", "f/d/device-2/update", "f/m/m/head", "g/d/device-1/state"],
        ),
        (
            "gateway-1",
            ["f/d/device-1/task", "f/d/device-2/receipt", "f/m/m/head", "f/m/m/weights"],
            ["f/d/device-1/state", "f/d/device-1/update", "g/m/m/head"],
        ),
        ("observer-1", [], ["f/d/observer-1/state", "f/d/device-1/state", "f/m/m/head"]),
    ],
)
def test_an_account_writes_only_what_its_role_may(username, allowed, denied, session):
    client = session(username)
    assert [topic for topic in allowed if client.publish(f"pollen/1/{topic}") == NOT_AUTHORISED] == []
    assert [topic for topic in denied if client.publish(f"pollen/1/{topic}") != NOT_AUTHORISED] == []


def test_an_account_reads_only_what_its_role_may(session, wait_until):
    readers = {account.username: session(account.username) for account in ACCOUNTS}
    for reader in readers.values():
        reader.subscribe("#")
    one, two, gateway = readers["device-1"], readers["device-2"], readers["gateway-1"]
    for leaf in ("state", "update", "result", "vitals"):
        one.publish(f"pollen/1/f/d/device-1/{leaf}")
    for leaf in ("task", "receipt"):
        gateway.publish(f"pollen/1/f/d/device-1/{leaf}")
    gateway.publish("pollen/1/f/m/m/head")
    # The last message that each of them may read, so that all before have been delivered or never will be.
    gateway.publish("pollen/1/f/m/m/weights")
    two.publish("pollen/1/f/d/device-2/vitals")
    last = {
        "device-1": "pollen/1/f/m/m/weights",
        "device-2": "pollen/1/f/m/m/weights",
        "gateway-1": "pollen/1/f/d/device-2/vitals",
        "observer-1": "pollen/1/f/d/device-2/vitals",
    }
    for name, topic in last.items():
        wait_until(lambda name=name, topic=topic: topic in readers[name].received, WAIT_S, f"{name} got {topic}")
    models = {"m/m/head", "m/m/weights"}
    replies = {"d/device-1/task", "d/device-1/receipt"}
    reports = {f"d/device-1/{leaf}" for leaf in ("state", "update", "result", "vitals")} | {"d/device-2/vitals"}
    read = {name: {topic.removeprefix("pollen/1/f/") for topic in one.received} for name, one in readers.items()}
    assert read == {
        "device-1": models | replies,
        "device-2": models,
        "gateway-1": reports,
        "observer-1": models | replies | reports,
    }


def test_a_wrong_password_and_an_unknown_user_are_refused(session, broker, wait_until):
    assert session("device-1", password=PASSWORDS["device-2"]).connected[0][0] == NOT_AUTHORISED
    other = broker([Account("device-9", "nine", "device")], fleet="f")
    stranger = Session(other.port, wait_until, account=("device-1", "one"))
    assert stranger.connected[0][0] == NOT_AUTHORISED
    stranger.close()


def test_a_client_id_of_ones_choice_takes_over_nobodys_session(session, wait_until):
    honest = session("device-1")
    honest.subscribe("pollen/1/f/d/device-1/task")
    thief = session("device-2", client_id="device-1")
    assert thief.connected[0][0] == 0
    session("gateway-1").publish("pollen/1/f/d/device-1/task", b"still mine")
    wait_until(lambda: honest.received, WAIT_S, "the honest device is still connected")
    assert thief.received == {}


def test_the_limits_are_what_the_broker_announces(broker, wait_until):
    running = broker(ACCOUNTS, fleet="f", limits=Limits(message_bytes=1_000_000, inflight=77))
    client = Session(running.port, wait_until, account=("device-1", "one"))
    properties = client.connected[0][1]
    assert properties.ReceiveMaximum == 77
    assert properties.MaximumPacketSize == 1_000_000 + 64 * 1024
    # Nobody is subscribed (0x10), but it is taken.
    assert client.publish("pollen/1/f/d/device-1/update", bytes(1_000_000)) == 0x10
    client.client.publish("pollen/1/f/d/device-1/update", bytes(1_000_000 + 64 * 1024), 1)
    wait_until(lambda: client.ended, WAIT_S, "the broker ends the connection")
    client.close()


def test_retained_messages_survive_a_restart_on_the_same_port(broker, wait_until):
    running = broker(ACCOUNTS, fleet="f")
    before = Session(running.port, wait_until, account=("gateway-1", "g"))
    before.publish("pollen/1/f/m/m/head", b"kept", retain=True)
    before.close()
    port, pid = running.port, running.process.pid
    running.restart()
    assert running.port == port
    assert running.process.pid != pid
    after = Session(port, wait_until, account=("device-1", "one"))
    after.subscribe("pollen/1/f/m/#")
    wait_until(lambda: after.received == {"pollen/1/f/m/m/head": b"kept"}, WAIT_S, "the retained message")
    after.close()


def test_kill_ends_the_process_and_start_brings_it_back(broker):
    running = broker(ACCOUNTS)
    process = running.process
    running.kill()
    assert process.returncode == -9
    assert not running.running
    running.start()
    assert running.running


def test_secrets_stay_out_of_the_files_and_the_files_are_private(broker):
    running = broker([Account("device-1", "a very secret word", "device")])
    for path in running.folder.iterdir():
        assert b"a very secret word" not in path.read_bytes(), path
    for name in ("passwords", "access-rules", "mosquitto.conf"):
        assert stat.S_IMODE((running.folder / name).stat().st_mode) == 0o600
    assert "a very secret word" not in repr(Account("device-1", "a very secret word", "device"))


def test_it_listens_on_loopback_only(broker):
    running = broker(ACCOUNTS)
    sockets = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    listening = {line.split()[1] for line in sockets if line.split()[3] == "0A"}
    assert {one for one in listening if one.endswith(f":{running.port:04X}")} == {f"0100007F:{running.port:04X}"}


def test_a_port_in_use_is_told(broker, mosquitto_binary, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PollenError, match="in use"):
            broker(ACCOUNTS, port=other.getsockname()[1])


@pytest.mark.parametrize(
    "accounts",
    [
        [Account("a/b", "x", "device")],
        [Account("a", "x", "device"), Account("a", "y", "device")],
        [Account("a", "", "device")],
    ],
)
def test_accounts_that_cant_be_used_are_refused(accounts, mosquitto_binary, tmp_path):
    with pytest.raises(SettingsError):
        Mosquitto(mosquitto_binary, tmp_path, fleet="f", accounts=accounts).start()


def test_it_runs_for_an_ordinary_user_from_a_private_folder(mosquitto_binary, tmp_path):
    tmp_path.chmod(0o700)
    with Mosquitto(mosquitto_binary, tmp_path / "b", fleet="f", accounts=ACCOUNTS) as running:
        owner = Path(f"/proc/{running.process.pid}").stat().st_uid
        assert owner == tmp_path.stat().st_uid, "it runs as who started it, and so can read its files"


def test_an_installed_mosquitto_is_taken_as_it_is(mosquitto_binary, tmp_path):
    said = []
    assert ensure(tmp_path / "cache", said.append).samefile(mosquitto_binary) or find() is None
    assert said == [] or find() is None


def test_a_mosquitto_older_than_2_is_not_taken(tmp_path, monkeypatch):
    old = tmp_path / "mosquitto"
    old.write_text('#!/bin/sh\necho "mosquitto version 1.6.12"\nexit 1\n', encoding="ascii")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "_FOLDERS", ())
    assert installation.version(old) == (1, 6)
    assert find() is None


def test_without_apt_and_without_mosquitto_the_one_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "_FOLDERS", ())
    with pytest.raises(PollenError, match="run: sudo apt-get install -y mosquitto"):
        ensure(tmp_path / "cache", lambda _line: None)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="unpacking Debian's package needs apt-get")
def test_debians_package_and_its_libraries_run_from_the_cache(tmp_path, monkeypatch):
    known = subprocess.run(["apt-cache", "show", "mosquitto"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("apt knows no package mosquitto here; run: apt-get update")
    installed = installation._installed_packages() - {"libdlt2", "libwrap0", "libnsl2", "libtirpc3"}
    monkeypatch.setattr(installation, "_installed_packages", lambda: installed)
    monkeypatch.setattr(installation, "_FOLDERS", ())
    cache = tmp_path / "a cache"
    said = []
    binary = installation.unpack(cache, said.append)
    if binary is None and any("Could not resolve" in line or "Unable to" in line for line in said):
        pytest.skip(f"Debian's mirror is not reachable: {said[-1]}")
    assert binary is not None, said
    with Mosquitto(binary, tmp_path / "a run", fleet="f", accounts=ACCOUNTS) as running:
        mapped = Path(f"/proc/{running.process.pid}/maps").read_text(encoding="utf-8")
    own = [line for line in mapped.splitlines() if str(cache) in line]
    assert any("libdlt.so" in line for line in own)
    assert any("usr/sbin/mosquitto" in line for line in own)
    monkeypatch.setattr(installation.shutil, "which", lambda *_arguments, **_options: None)
    assert find(cache) == binary, "a second call finds it unpacked"


def test_the_module_prints_the_path(mosquitto_binary, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pollen.mosquitto", tmp_path / "cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert installation.version(Path(done.stdout.strip())) >= (2, 0)
