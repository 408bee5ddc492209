"""Faults on the way, and what users of other gateways complain about: reconnecting that gives up, loops or fights."""

import socket
import time

import psutil
import pytest

from pollen.bridge import ToDevice
from pollen.mosquitto import Mosquitto
from tests.gateway.conftest import ACCOUNTS, FLEET
from tests.gateway.relay import Relay

WAIT_S = 60.0


def _ready(wait_until, process):
    wait_until(lambda: process.ready, WAIT_S, f"the gateway is ready; it says: {process.text}")
    return process


def _cpu_share(process, seconds):
    """CPU seconds used per second."""
    watched = psutil.Process(process.process.pid)
    before = sum(watched.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(watched.cpu_times()[:2]) - before) / seconds


def _broker_port(port):
    return {"POLLEN_BROKER_PORT": str(port)}


def test_a_half_open_connection_to_the_broker_is_found_and_replaced(gateway, server, device, mosquitto, wait_until):
    server.accepting = True
    with Relay(mosquitto.port) as relay:
        environment = _broker_port(relay.port) | {"POLLEN_BROKER_KEEPALIVE_S": "2"}
        process = _ready(wait_until, gateway(environment=environment))
        relay.fall_silent()
        # The broker, too, finds out by the keep-alive; until then its session is the old connection's.
        wait_until(lambda: process.text.count("subscribed at") == 2, WAIT_S, "it has connected again")
        sender = device()
        sender.publish("update", b"after")
        wait_until(lambda: server.payloads == [b"after"], WAIT_S, "the update arrived")


@pytest.mark.slow  # grpc looks every 20 s and waits 10
def test_a_half_open_stream_to_the_server_is_found_and_replaced(gateway, server, device, wait_until):
    server.accepting = True
    with Relay(server.port) as relay:
        process = _ready(wait_until, gateway(environment={"POLLEN_SERVER_PORT": str(relay.port)}))
        relay.fall_silent()
        sender = device()
        sender.publish("update", b"1")
        wait_until(lambda: "stream to the server lost" in process.text, 90.0, "it has noticed")
        wait_until(lambda: b"1" in server.payloads, WAIT_S, "the update went up on the next stream")
        assert server.payloads == [b"1"]


def test_a_server_that_is_reached_through_another_connection_each_time_gets_it_all(gateway, server, device, wait_until):
    """Whatever cuts the stream, each update is accepted on some stream, and acknowledged once."""
    server.accepting = True
    sender = device()
    process = _ready(wait_until, gateway())
    for number in range(3):
        server.stop()
        sender.publish("update", b"%d" % number)
        server.start()
        wait_until(lambda number=number: b"%d" % number in server.payloads, WAIT_S, f"update {number} arrived")
    assert process.process.poll() is None
    assert server.payloads == [b"0", b"1", b"2"]


def test_a_broker_that_dies_while_nothing_is_read_is_not_waited_for_hot(gateway, server, device, mosquitto, wait_until):
    sender = device()
    process = _ready(wait_until, gateway(limits="inflight_bytes = 1"))
    sender.publish("update", b"first")
    wait_until(lambda: server.payloads == [b"first"], WAIT_S, "the update that begins the pause")
    mosquitto.kill()
    server.stream.down.put(ToDevice("device-1", "task", b"t"))  # the dead broker's kernel answers it with a reset
    assert _cpu_share(process, 3.0) < 0.3
    server.accepting = True
    mosquitto.start()
    wait_until(lambda: process.text.count("subscribed at") == 2, WAIT_S, "it has connected again")
    sender.publish("update", b"second")
    wait_until(lambda: b"second" in server.payloads, WAIT_S, "an update arrived")


def test_a_broker_that_refuses_is_asked_again_for_ever_and_not_hot(  # noqa: PLR0917
    gateway, server, device, mosquitto, mosquitto_binary, wait_until
):
    server.accepting = True
    process = _ready(wait_until, gateway())
    without = [account for account in ACCOUNTS if account.username != "gateway-1"]
    mosquitto.stop()
    refusing = Mosquitto(mosquitto_binary, mosquitto.folder, fleet=FLEET, accounts=without, port=mosquitto.port)
    refusing.start()
    try:
        wait_until(lambda: process.text.count("refused the connection") >= 3, WAIT_S, "refused three times")
        assert _cpu_share(process, 3.0) < 0.3
        assert process.process.poll() is None
    finally:
        refusing.stop()
    mosquitto.start()
    wait_until(lambda: process.text.count("subscribed at") == 2, WAIT_S, "it has connected again")
    device().publish("update", b"after")
    wait_until(lambda: server.payloads == [b"after"], WAIT_S, "the update arrived")


def test_an_absent_broker_and_an_absent_server_cost_no_cpu(gateway, server, mosquitto, wait_until):
    mosquitto.stop()
    server.stop()
    process = gateway()
    wait_until(lambda: process.text.count("is not reachable") >= 3, WAIT_S, "it tries")
    assert _cpu_share(process, 3.0) < 0.3


def test_a_listener_that_says_nothing_does_not_hold_up_the_stop(gateway, server, wait_until):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = gateway(extra="drain_s = 1.0", environment=_broker_port(silent.getsockname()[1]))
        silent.settimeout(WAIT_S)
        connection, _ = silent.accept()
        with connection:
            process.terminate()
            assert process.exit_code(15.0) == 0


@pytest.mark.slow
def test_two_gateways_of_one_name_do_not_throw_each_other_out_hot(gateway, server, wait_until):
    first = _ready(wait_until, gateway())
    second = _ready(wait_until, gateway())
    wait_until(lambda: first.text.count("subscribed at") > 1, WAIT_S, "they throw each other out")
    assert _cpu_share(first, 8.0) < 0.3
    # Each waits up to twice as long as the time before: 0.25 s, 0.5 s, … 15 s.
    assert first.text.count("subscribed at") + second.text.count("subscribed at") < 25
    assert "has another gateway the same name?" in first.text


def test_a_gateway_whose_name_is_taken_returns_once_the_other_has_gone(gateway, server, device, wait_until):
    server.accepting = True
    first = _ready(wait_until, gateway())
    second = _ready(wait_until, gateway())
    wait_until(lambda: "has another gateway the same name?" in first.text, WAIT_S, "thrown out")
    second.kill()

    def arrived():
        device_1.publish("update", b"after")
        return b"after" in server.payloads

    device_1 = device()
    wait_until(arrived, WAIT_S, "the update arrived")
    assert first.process.poll() is None


@pytest.mark.parametrize("absent", ["broker", "server", "both"])
def test_a_stop_while_one_side_is_away_ends_in_time(absent, gateway, server, mosquitto, wait_until):
    process = _ready(wait_until, gateway(extra="drain_s = 2.0"))
    if absent != "server":
        mosquitto.stop()
    if absent != "broker":
        server.stop()
    process.terminate()
    assert process.exit_code(30.0) == 0


def test_a_second_sigterm_ends_it_at_once(gateway, server, device, wait_until):
    sender = device()
    process = _ready(wait_until, gateway(extra="drain_s = 100.0"))
    sender.publish("update", b"never accepted")
    wait_until(lambda: server.payloads, WAIT_S, "the server has it")
    process.terminate()
    wait_until(lambda: "stopping" in process.text, WAIT_S, "it drains")
    process.terminate()
    assert process.exit_code(30.0) == -15
    again = gateway()
    wait_until(lambda: len(server.payloads) == 2, WAIT_S, f"the broker kept it; {again.text}")
