"""The client that stops in the middle of a read, with what it relies on in paho, at a real broker."""

import select

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.held_client import HeldClient
from pollen import topics
from tests.gateway.conftest import FLEET

WAIT_S = 60.0
UPDATES = 10


def test_a_held_client_takes_no_packet_beyond_the_one_that_made_it_hold(mosquitto, device, wait_until):
    came, subscribed, held = [], [], [False]

    def take(_client, _userdata, message):
        came.append(message.payload)
        held[0] = True

    client = HeldClient(CallbackAPIVersion.VERSION2, "gateway-1", protocol=MQTTProtocolVersion.MQTTv5)
    client.username_pw_set("gateway-1", "secret of gateway-1")
    client.held = lambda: held[0]
    client.on_connect = lambda *_: client.subscribe(topics.device(FLEET, "+", "update"), 1)
    client.on_subscribe = lambda *_: subscribed.append(True)
    client.on_message = take
    client.connect("127.0.0.1", mosquitto.port)

    def turn():
        if select.select([client.socket()], [], [], 0.05)[0]:
            client.loop_read()
        if client.want_write():
            client.loop_write()

    wait_until(lambda: turn() or subscribed, WAIT_S, "subscribed")
    held[0] = True
    sender = device()
    updates = [b"%d" % number for number in range(UPDATES)]
    for update in updates:
        sender.publish("update", update)
    for _ in range(5 * UPDATES):  # paho reads as many packets at once as it has messages under way
        client.publish(topics.device(FLEET, "device-2", "task"), b"t", 1)
    for number in range(1, UPDATES + 1):
        held[0] = False
        wait_until(lambda number=number: turn() or len(came) >= number, WAIT_S, f"update {number}")
        turn()
        assert came == updates[:number]
    client.disconnect()
