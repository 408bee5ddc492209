"""Overload: a device that floods, a server that stops reading, updates too large for many at once."""

import os
import random
import signal
import threading
import time

import psutil
import pytest

from pollen.bridge import ToDevice

WAIT_S = 60.0


def _ready(wait_until, process):
    wait_until(lambda: process.ready, WAIT_S, f"the gateway is ready; it says: {process.text}")
    return process


def _flood(device, stop, count):
    while not stop.is_set():
        device.client.publish(f"pollen/1/test/d/{device.name}/update", b"flood", 1)
        count[0] += 1
        time.sleep(0.001)


def test_a_device_that_floods_starves_nobody(gateway, server, device, wait_until):
    server.accepting = True
    flooder, honest = device("device-1"), device("device-2")
    process = _ready(wait_until, gateway(limits="uploads_per_s = 5\nupload_burst = 5\nreceive_maximum = 16"))
    stop, count = threading.Event(), [0]
    thread = threading.Thread(target=_flood, args=(flooder, stop, count))
    thread.start()
    try:
        wait_until(lambda: count[0] > 200, WAIT_S, "the flood is under way")
        updates = [b"honest %d" % number for number in range(5)]
        for update in updates:
            honest.publish("update", update)
        wait_until(lambda: set(updates) <= set(server.payloads), WAIT_S, "the honest device's updates arrived")
        wait_until(lambda: count[0] > 1000, WAIT_S, "a thousand of the flood")
    finally:
        stop.set()
        thread.join()
    last = b"the flooder is heard again"

    def heard():
        flooder.publish("update", last)
        return last in server.payloads

    wait_until(heard, WAIT_S, "a device that has calmed down is heard")
    assert server.payloads.count(b"flood") < count[0] / 3
    assert process.text.count("device-1 sends more than limits allow") == 1
    assert "device-2" not in process.text


def test_a_server_that_stops_reading_costs_bounded_memory_and_no_update(gateway, server, device, wait_until):
    sender = device()
    going_on = threading.Event()
    server.on_upload = lambda _stream, _upload: going_on.wait(WAIT_S)
    server.accepting = True
    process = _ready(wait_until, gateway(limits="inflight_bytes = 8_000_000\nuploads_per_s = 0\nbytes_per_s = 0"))
    memory = psutil.Process(process.process.pid)
    before = memory.memory_info().rss
    updates = [b"%04d" % number + bytes(1_000_000) for number in range(100)]
    for update in updates:
        sender.publish("update", update)
    wait_until(lambda: "stays with the broker" in process.text, WAIT_S, "it reads on and keeps nothing")
    # It is still there for everything else.
    sender.publish("state", b"a birth", retain=True)
    assert memory.memory_info().rss - before < 60e6
    going_on.set()
    wait_until(lambda: set(server.payloads) == set(updates), WAIT_S, "all arrived")
    assert len(server.payloads) < 3 * len(updates)
    assert memory.memory_info().rss - before < 60e6
    wait_until(lambda: server.stream.states, WAIT_S, "the birth arrived")

    marker = b"marker"
    sender.publish("update", marker)
    wait_until(lambda: marker in server.payloads, WAIT_S, "the marker arrived")
    process.terminate()
    assert process.exit_code() == 0
    known = len(server.payloads)
    _ready(wait_until, gateway())
    sender.publish("update", b"next")
    wait_until(lambda: server.payloads[known:], WAIT_S, "the next arrived")
    assert server.payloads[known:] == [b"next"], "all before were acknowledged"


def test_acceptance_behind_many_receipts_ends_a_pause_at_once(gateway, server, device, wait_until):
    """While nothing is read no publish is acknowledged, so the bound on publishes must not hold up what ends it."""
    sender = device()

    def accept_in_the_end(stream, _upload):
        if len(stream.uploads) >= 15:  # more than may be in flight
            for _ in range(300):
                stream.down.put(ToDevice("device-2", "task", b"t"))
            stream.accept(*stream.uploads)

    server.on_upload = accept_in_the_end
    process = _ready(wait_until, gateway(limits="inflight_bytes = 1_500_000\nuploads_per_s = 0\nbytes_per_s = 0"))
    updates = [b"%d" % number + bytes(100_000) for number in range(20)]
    for update in updates:
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 20, WAIT_S, "all arrived")
    sender.publish("update", b"last")
    wait_until(lambda: server.payloads[20:] == [b"last"], 4.0, "nothing holds it up")
    assert [payload[:3] for payload in server.payloads[:20]] == [update[:3] for update in updates]
    assert "stays with the broker" not in process.text


@pytest.mark.slow
def test_a_broker_that_comes_and_goes_while_the_server_reads_nothing_costs_bounded_memory(
    gateway, server, device, mosquitto, wait_until
):
    going_on = threading.Event()
    server.on_upload = lambda _stream, _upload: going_on.wait(WAIT_S)
    process = _ready(wait_until, gateway(limits="uploads_per_s = 0\nbytes_per_s = 0"))
    sender = device()
    for number in range(20):
        sender.publish("update", b"%d" % number + bytes(1_000_000))
    memory = psutil.Process(process.process.pid)
    try:
        peak = 0.0
        for flap in range(1, 7):
            mosquitto.restart()
            wait_until(lambda flap=flap: process.text.count("subscribed at") > flap, WAIT_S, "subscribed again")
            peak = max(peak, memory.memory_info().rss)
        assert peak < 180e6, "one copy of what is in flight, not one for each connection"
    finally:
        going_on.set()


@pytest.mark.slow
def test_pauses_reloads_and_restarts_at_once_lose_nothing(gateway, server, device, tmp_path, wait_until):
    """The senders send nothing twice here: what the gateways were given comes through by the broker alone."""
    limits = "uploads_per_s = 0\nmessages_per_s = 0\nbytes_per_s = 0\ninflight_bytes = 500_000\nreceive_maximum = {}"
    chance = random.Random(5)
    server.on_upload = lambda stream, upload: threading.Timer(0.5 * chance.random(), stream.accept, (upload,)).start()
    processes = {name: gateway(name, limits=limits.format(16)) for name in ("gateway-1", "gateway-2")}
    for process in processes.values():
        _ready(wait_until, process)
    senders = [device(f"device-{number}") for number in (1, 2, 3)]
    updates = [b"%04d" % number + bytes(chance.choice([10, 100_000, 1_000_000])) for number in range(200)]
    for number, update in enumerate(updates):
        chance.choice(senders).publish("update", update)
        if number % 5 == 0:
            for name, process in processes.items():
                config = tmp_path / f"{name}.toml"
                before, after = (f"receive_maximum = {most}" for most in ((16, 17) if number % 2 == 0 else (17, 16)))
                config.write_text(config.read_text("utf-8").replace(before, after), "utf-8")
                os.kill(process.process.pid, signal.SIGHUP)
        if number % 60 == 59:
            server.stop()
            server.start()
    wait_until(lambda: set(updates) <= set(server.payloads), WAIT_S, "all arrived")
    assert all("settings reloaded: limits" in process.text for process in processes.values())
