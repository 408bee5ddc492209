"""The yardstick: messages a second through the broker from one publisher to one subscriber that throws them away."""

import secrets
import threading
import time
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from pollen import topics

IN_FLIGHT: Final = 20


def bare_mqtt(port: int, fleet: str, publisher: str, password: str, *, kilobytes: int, seconds: float) -> float:
    """QoS 1 from the gateway's account `publisher` to the account "observer", on the plain broker at `port`."""
    topic = topics.device(fleet, "nobody", "receipt")
    payload = secrets.token_bytes(kilobytes * 1000)
    received, subscribed = 0, threading.Event()

    def count(*_: Any) -> None:
        nonlocal received
        received += 1

    def client(name: str) -> mqtt.Client:
        made = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        made.username_pw_set(name, password)
        made.max_inflight_messages_set(IN_FLIGHT)
        made.on_subscribe = lambda *_: subscribed.set()
        made.connect("127.0.0.1", port)
        made.loop_start()
        return made

    sink, source = client("observer"), client(publisher)
    sink.on_message = count
    sink.subscribe(topic, 1)
    if not subscribed.wait(10):
        raise SystemExit("error: the broker answered no subscription within 10 s")
    window = threading.Semaphore(IN_FLIGHT)
    source.on_publish = lambda *_: window.release()
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        window.acquire()
        source.publish(topic, payload, qos=1)
    rate = received / (time.monotonic() - started)
    for one in (sink, source):
        one.disconnect()
        one.loop_stop()
    return rate
