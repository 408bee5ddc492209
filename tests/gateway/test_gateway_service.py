"""The gateway as a service: start, readiness, refusal, drain, scale-out, and what it imports."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
WAIT_S = 20.0


def _run(config: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gateway.command", "--config", config],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_sigterm_waits_for_what_was_handed_to_the_server(gateway, server, device, wait_until):
    sender = device()
    process = gateway()
    wait_until(lambda: process.ready, WAIT_S, "ready")
    for update in (b"1", b"2", b"3"):
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 3, WAIT_S, "the server has three updates")
    process.terminate()
    # Nobody is subscribed any more: the broker has nowhere to put this (MQTT 5, section 3.4.2.1).
    wait_until(lambda: sender.publish("update", b"late") == 0x10, WAIT_S, "the gateway unsubscribed")
    assert process.process.poll() is None, "it waits for the server"
    known = len(server.payloads)
    server.stream.accept(*server.stream.uploads)
    if known > 3:  # updates that came in before it had unsubscribed
        wait_until(lambda: len(server.payloads) == known, WAIT_S, "those too")
    assert process.exit_code() == 0
    assert "not accepted" not in process.text

    again = gateway()
    wait_until(lambda: again.ready, WAIT_S, "ready again")
    sender.publish("update", b"next")
    wait_until(lambda: server.stream.payloads, WAIT_S, "the next update arrived")
    assert server.stream.payloads == [b"next"]


def test_a_drain_without_the_server_ends_in_time_and_loses_nothing(gateway, server, device, wait_until):
    sender = device()
    process = gateway(extra="drain_s = 1.0")
    wait_until(lambda: process.ready, WAIT_S, "ready")
    sender.publish("update", b"1")
    wait_until(lambda: server.payloads, WAIT_S, "the server has it")
    process.terminate()
    assert process.exit_code(10.0) == 0
    assert "1 deliveries not accepted" in process.text
    gateway()
    wait_until(lambda: server.payloads == [b"1", b"1"], WAIT_S, "the broker kept it")


def test_two_gateways_share_the_load_and_ones_death_loses_nothing(gateway, server, device, wait_until):
    extra = "session_expiry_s = 1"
    one, two = gateway("gateway-1", extra=extra), gateway("gateway-2", extra=extra)
    wait_until(lambda: one.ready and two.ready, WAIT_S, "both ready")
    sender = device()
    updates = {b"%d" % number for number in range(100)}
    for update in updates:
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 100, WAIT_S, "all arrived")
    shares = {stream.gateway: stream for stream in server.streams}
    assert all(len(stream.payloads) >= 20 for stream in shares.values()), "both had their share"

    shares["gateway-1"].accept(*shares["gateway-1"].uploads)
    two.kill()
    settled = set(shares["gateway-1"].payloads)
    assert settled < updates
    server.accepting = True

    def all_settled():
        # The device's part: it publishes again what it got no receipt for.
        for update in updates - settled:
            sender.publish("update", update)
        settled.update(stream_payloads() & updates)
        return settled == updates

    def stream_payloads():
        return set(shares["gateway-1"].payloads)

    wait_until(all_settled, WAIT_S, "the other gateway brought the rest")
    assert one.process.poll() is None


def test_a_device_that_joins_the_group_costs_others_no_update_that_they_send_again(gateway, server, device, wait_until):
    """Mosquitto lets it join, and drops what falls to it."""
    server.accepting = True
    process = gateway()
    wait_until(lambda: process.ready, WAIT_S, "ready")
    thief, honest = device("device-2"), device("device-1")
    thief.subscribe("$share/gateways/pollen/1/test/d/+/update")
    missing = {b"%d" % number for number in range(40)}

    def all_arrived():
        missing.difference_update(server.payloads)
        for update in missing:
            honest.publish("update", update)
        return not missing

    wait_until(all_arrived, WAIT_S, "all arrived")
    assert thief.received == []


def test_a_device_that_does_not_know_the_group_takes_nothing_from_it(gateway, server, device, wait_until):
    server.accepting = True
    process = gateway(extra='group = "6c1f0e"')
    wait_until(lambda: process.ready, WAIT_S, "ready")
    thief, honest = device("device-2"), device("device-1")
    thief.subscribe("$share/gateways/pollen/1/test/d/+/update")
    updates = [b"%d" % number for number in range(40)]
    for update in updates:
        honest.publish("update", update)
    wait_until(lambda: len(server.payloads) >= 40, WAIT_S, "all arrived")
    assert server.payloads == updates


def test_a_gateway_that_returns_gets_what_it_had_not_acknowledged(gateway, server, device, wait_until):
    one, two = gateway("gateway-1"), gateway("gateway-2")
    wait_until(lambda: one.ready and two.ready, WAIT_S, "both ready")
    sender = device()
    updates = sorted(b"%d" % number for number in range(50))
    for update in updates:
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 50, WAIT_S, "all arrived")
    share = next(stream for stream in server.streams if stream.gateway == "gateway-2").payloads
    assert share
    two.kill()
    back = gateway("gateway-2")
    wait_until(lambda: back.ready, WAIT_S, "ready again")
    wait_until(lambda: len(server.stream.payloads) == len(share), WAIT_S, "its share came again")
    assert server.stream.payloads == share


def test_a_wrong_password_ends_it_with_one_clear_line(mosquitto, server, tmp_path):
    config = tmp_path / "gateway.toml"
    config.write_text(
        'fleet = "test"\n[logging]\nlevel = "error"\n'
        f'[broker]\nport = {mosquitto.port}\nusername = "gateway-1"\npassword = "wrong"\n'
        f"[server]\nport = {server.port}\n",
        encoding="utf-8",
    )
    done = _run(config)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: broker at 127.0.0.1:{mosquitto.port} refused the connection: user name or password is wrong; "
        "correct broker.username and broker.password\n"
    )


@pytest.mark.parametrize(
    ("host", "group", "warned"),
    [("broker.invalid", "gateways", True), ("broker.invalid", "6c1f0e", False), ("127.0.0.1", "gateways", False)],
)
def test_it_warns_of_the_default_group_where_others_reach_the_broker(host, group, warned, tmp_path):
    config = tmp_path / "gateway.toml"
    config.write_text(f'fleet = "test"\ngroup = "{group}"\n[broker]\nhost = "{host}"\nca = "missing.pem"\n')
    ended = _run(config)
    assert ended.returncode == 2
    assert "missing.pem" in ended.stderr
    assert ("openssl rand" in ended.stderr) == warned


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[server]\nhost = "10.0.0.1"', "is not loopback"),
        ('[server]\nca = "ca.pem"', "belong together"),
        ("[limits]\nreceive_maximum = 0", "receive_maximum"),
        ('group = "a/b"', "group"),
        ("session_expiry_s = 0", "session_expiry_s"),
        ("spam = 1", "spam"),
    ],
)
def test_settings_that_cant_be_used_end_it_with_exit_code_2(text, says, tmp_path):
    config = tmp_path / "gateway.toml"
    table = text if text.startswith("[") else ""
    config.write_text(f'fleet = "test"\n{"" if table else text}\n{table}\n', encoding="utf-8")
    done = _run(config)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_it_waits_for_broker_and_server_to_appear(mosquitto, server, gateway, device, wait_until):
    mosquitto.stop()
    server.stop()
    process = gateway()
    wait_until(lambda: "is not reachable" in process.text, WAIT_S, "it says what it waits for")
    mosquitto.start()
    server.start()
    wait_until(lambda: process.ready, WAIT_S, "ready")


def test_it_tells_systemd_when_both_sides_are_up_and_when_it_stops(gateway, tmp_path, wait_until):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(WAIT_S)
        process = gateway(environment={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"})
        assert listener.recv(100) == b"WATCHDOG=1", "the watchdog is fed before both sides are up"
        told = b""
        while told != b"READY=1":
            told = listener.recv(100)
        assert "is ready" in process.text
        process.terminate()
        while told != b"STOPPING=1":
            told = listener.recv(100)
        assert process.exit_code() == 0


def test_its_imports_hold_neither_tensorflow_nor_flower():
    program = (
        "import sys, gateway.command, gateway.bridge_loop;"
        "print([name for name in ('tensorflow', 'keras', 'flwr', 'numpy.ma', 'server', 'edge_client')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == "[]"
