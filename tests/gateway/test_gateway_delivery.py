"""What the gateway promises the broker and the server: nothing acknowledged early, nothing lost, nothing unbounded."""

import time

import psutil

from pollen.bridge import Accepted, ModelMessage, ToDevice
from pollen.messages import SMALL_BYTES

WAIT_S = 20.0


def _subscribed(wait_until, process):
    """A gateway that is ready: what is published from now on reaches it."""
    wait_until(lambda: process.ready, WAIT_S, f"the gateway is ready; it says: {process.text}")
    return process


def _fence(wait_until, stream, device, mark=b"fence"):
    """Return once the gateway has handled everything that the server sent before."""
    stream.down.put(ToDevice(device.name, "receipt", mark))
    wait_until(lambda: any(message.payload == mark for message in device.received), WAIT_S, "the fence came through")


def test_an_update_is_acknowledged_only_after_the_server_accepted_it(gateway, server, device, wait_until):
    sender = device()
    first = _subscribed(wait_until, gateway())
    assert sender.publish("update", b"promised") == 0
    wait_until(lambda: server.payloads == [b"promised"], WAIT_S, "the server has the update")
    first.kill()

    second = gateway()
    wait_until(lambda: server.payloads == [b"promised"] * 2, WAIT_S, "the broker delivers it again")
    sender.listen()
    server.stream.accept(*server.stream.uploads)
    _fence(wait_until, server.stream, sender)
    second.kill()

    _subscribed(wait_until, gateway())
    sender.publish("update", b"next")
    wait_until(lambda: server.stream.payloads, WAIT_S, "the server has the next update")
    assert server.stream.payloads == [b"next"]


def test_acknowledgements_keep_the_order_of_receipt(gateway, server, device, wait_until):
    sender = device()
    sender.listen()
    first = _subscribed(wait_until, gateway())
    updates = [b"1", b"2", b"3", b"4"]
    for update in updates:
        sender.publish("update", update)
    wait_until(lambda: server.payloads == updates, WAIT_S, "the server has four updates")
    stream = server.stream
    stream.accept(stream.uploads[2])
    stream.accept(stream.uploads[0])
    _fence(wait_until, stream, sender)
    first.kill()

    second = _subscribed(wait_until, gateway())
    wait_until(lambda: len(server.stream.uploads) == 3, WAIT_S, "the broker delivers again")
    # 1 was acknowledged; 3 was accepted but had to wait for 2.
    assert server.stream.payloads == [b"2", b"3", b"4"]
    assert "error" not in second.text.lower()


def test_what_was_not_accepted_goes_up_again_when_the_stream_comes_back(gateway, server, device, wait_until):
    sender = device()
    sender.listen()
    process = _subscribed(wait_until, gateway())
    for update in (b"1", b"2", b"3"):
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 3, WAIT_S, "the server has three updates")
    old = server.stream
    old.accept(old.uploads[0])
    _fence(wait_until, old, sender)
    server.stop()
    sender.publish("result", b"4")
    server.start()
    wait_until(lambda: server.stream is not old, WAIT_S, "the gateway dials again")
    wait_until(lambda: len(server.stream.uploads) == 3, WAIT_S, "the rest goes up again")
    new = server.stream
    assert new.payloads == [b"2", b"3", b"4"]
    assert [upload.leaf for upload in new.uploads] == ["update", "update", "result"]
    assert not {upload.delivery for upload in new.uploads} & {upload.delivery for upload in old.uploads}

    new.accept(*new.uploads)
    _fence(wait_until, new, sender, b"again")
    process.kill()
    _subscribed(wait_until, gateway())
    sender.publish("update", b"5")
    wait_until(lambda: server.stream.payloads, WAIT_S, "the server has the next update")
    assert server.stream.payloads == [b"5"], "all before were acknowledged on the old connection"


def test_receive_maximum_bounds_what_is_in_flight(gateway, server, device, wait_until):
    sender = device()
    _subscribed(wait_until, gateway(limits="receive_maximum = 16\nuploads_per_s = 0"))
    updates = [b"%d" % number for number in range(1000)]
    for update in updates:
        sender.publish("update", update)
    # QoS 0 goes past the bound, so what the broker was going to send has been sent when this arrives.
    sender.publish("vitals", b"marker", qos=0)
    wait_until(lambda: server.stream.vitals, WAIT_S, "the vitals arrived")
    wait_until(lambda: len(server.stream.uploads) >= 16, WAIT_S, "the first sixteen arrived")
    assert server.stream.payloads == updates[:16]

    server.accepting = True
    server.stream.accept(*server.stream.uploads)
    wait_until(lambda: len(server.payloads) >= 1000, WAIT_S, "all thousand arrived")
    assert server.payloads == updates


def test_a_broker_restart_brings_back_what_was_not_acknowledged(gateway, server, device, mosquitto, wait_until):
    sender = device()
    process = _subscribed(wait_until, gateway())
    for update in (b"1", b"2"):
        sender.publish("update", update)
    wait_until(lambda: len(server.payloads) == 2, WAIT_S, "the server has two updates")
    old = list(server.stream.uploads)
    mosquitto.restart()
    wait_until(lambda: len(server.payloads) == 4, WAIT_S, "the broker delivers them again")
    assert server.payloads == [b"1", b"2"] * 2
    assert len(server.streams) == 1, "the stream to the server is not touched"

    # Numbers of the old connection mean nothing any more: nothing may be acknowledged for them.
    server.stream.accept(*old)
    wait_until(sender.client.is_connected, WAIT_S, "the device is connected again")
    sender.listen()
    _fence(wait_until, server.stream, sender)
    process.kill()
    gateway()
    wait_until(lambda: len(server.streams) == 2 and len(server.stream.uploads) == 2, WAIT_S, "both come again")


def test_updates_flow_again_after_the_broker_was_killed(gateway, server, device, mosquitto, wait_until):
    server.accepting = True
    sender = device()
    process = _subscribed(wait_until, gateway())
    for round_number in range(3):
        mosquitto.kill()
        mosquitto.start()
        update = b"round %d" % round_number

        def arrived(update=update):
            # The device's part: it publishes again until it hears of its update.
            if sender.client.is_connected():
                sender.publish("update", update)
            return update in server.payloads

        wait_until(arrived, WAIT_S, f"the update of round {round_number} arrived")
    assert process.process.poll() is None


def test_every_new_stream_gets_the_roster(gateway, server, device, wait_until):
    one, two = device("device-1"), device("device-2")
    one.publish("state", b"birth 1", retain=True)
    two.publish("state", b"birth 2", retain=True)
    _subscribed(wait_until, gateway())
    wait_until(lambda: len(server.stream.states) == 2, WAIT_S, "the retained births arrived")
    assert {state.device: state.payload for state in server.stream.states} == {
        "device-1": b"birth 1",
        "device-2": b"birth 2",
    }
    two.publish("state", b"death 2", retain=True)
    wait_until(lambda: len(server.stream.states) == 3, WAIT_S, "the death arrived")
    one.publish("state", b"", retain=True)
    wait_until(lambda: len(server.stream.states) == 4, WAIT_S, "the removal arrived")
    assert server.stream.states[3].device == "device-1"
    assert server.stream.states[3].payload == b""

    old = server.stream
    server.stop()
    server.start()
    wait_until(lambda: server.stream is not old and server.stream.states, WAIT_S, "the roster is repeated")
    assert type(server.stream.frames[0]).__name__ == "Hello"
    assert [(state.device, state.payload) for state in server.stream.states] == [("device-2", b"death 2")]


def test_an_oversize_update_goes_up_as_its_length(gateway, server, device, wait_until):
    server.accepting = True
    sender = device()
    _subscribed(wait_until, gateway(limits="update_bytes = 1000"))
    sender.publish("update", bytes(1001))
    sender.publish("update", bytes(1000))
    wait_until(lambda: len(server.payloads) == 2, WAIT_S, "both arrived")
    large, fitting = server.stream.uploads
    length, digest = large.payload.split()
    assert (large.device, large.leaf, length, len(digest)) == ("device-1", "oversize", b"1001", 64)
    assert (fitting.leaf, fitting.payload) == ("update", bytes(1000))


def test_messages_nobody_can_use_stop_nothing(gateway, server, device, wait_until):
    server.accepting = True
    sender = device()
    sender.publish("state", bytes(SMALL_BYTES + 1), retain=True)
    _subscribed(wait_until, gateway(limits="receive_maximum = 1"))
    sender.publish("vitals", bytes(SMALL_BYTES + 1), qos=0)
    sender.publish("update", b"")
    sender.publish("update", b"\xff\x00 not CBOR")
    wait_until(lambda: len(server.payloads) == 2, WAIT_S, "the updates arrived")
    assert server.payloads == [b"", b"\xff\x00 not CBOR"], "what is in an update is the server's to judge"
    assert not server.stream.states
    assert not server.stream.vitals


def test_an_update_under_another_devices_name_is_refused_by_the_broker(gateway, server, device, wait_until):
    server.accepting = True
    sender = device("device-1")
    _subscribed(wait_until, gateway())
    assert sender.publish("update", b"forged", device="device-2") == 0x87
    assert sender.publish("task", b"forged") == 0x87
    assert sender.publish("update", b"honest") == 0
    wait_until(lambda: server.payloads, WAIT_S, "the honest update arrived")
    assert [(upload.device, upload.payload) for upload in server.stream.uploads] == [("device-1", b"honest")]


def test_tasks_and_models_reach_devices(gateway, server, device, wait_until):
    early = device("device-1")
    early.listen()
    _subscribed(wait_until, gateway())
    server.stream.down.put(ModelMessage("m", "head", b"old head"))
    server.stream.down.put(ModelMessage("m", "head", b"new head"))
    server.stream.down.put(ToDevice("device-1", "task", b"a task", expiry_s=77))
    server.stream.down.put(ToDevice("not/a/device", "task", b"nonsense"))
    server.stream.down.put(Accepted((12345,)))
    server.stream.down.put(ToDevice("device-1", "receipt", b"a receipt"))
    wait_until(lambda: len(early.received) == 2, WAIT_S, "task and receipt arrived")
    assert [message.payload for message in early.received] == [b"a task", b"a receipt"]
    assert early.received[0].properties.MessageExpiryInterval == 77
    assert not hasattr(early.received[1].properties, "MessageExpiryInterval")

    late = device("device-2")
    late.subscribe("pollen/1/test/m/#")
    wait_until(lambda: late.received, WAIT_S, "the retained head arrived")
    assert [message.payload for message in late.received] == [b"new head"]


def test_a_broker_that_stands_still_holds_the_server_back(gateway, server, device, mosquitto, wait_until):
    receiver = device()
    receiver.listen()
    process = _subscribed(wait_until, gateway())
    broker_process = psutil.Process(mosquitto.process.pid)
    memory = psutil.Process(process.process.pid)
    before = memory.memory_info().rss
    broker_process.suspend()
    try:
        for number in range(10_000):
            server.stream.down.put(ToDevice("device-1", "receipt", b"%05d" % number + bytes(20_000)))
        left = server.stream.down.qsize()

        def at_rest():
            nonlocal left
            time.sleep(0.3)
            now = server.stream.down.qsize()
            still, left = now == left, now
            return still

        wait_until(at_rest, WAIT_S, "the server is held back")
        assert left > 5_000
        assert memory.memory_info().rss - before < 100e6
    finally:
        broker_process.resume()
    wait_until(lambda: len(receiver.received) == 10_000, 60.0, "all receipts arrived in the end")
    assert [int(message.payload[:5]) for message in receiver.received] == list(range(10_000))
