"""Labels from an MQTT topic: a real broker, and the real agent."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge_client.clock import SystemClock
from edge_client.learning.label_topic import WAITING, LabelTopic
from edge_client.learning.labels import LabelEvent
from edge_client.settings import EdgeSettings, Labels
from edge_client.settings import Learner as LearnerSettings
from pollen.broker import Broker
from pollen.bundle import Bundle
from tests.conftest import WaitUntil
from tests.edge_client.fleet import Device, Server
from tests.edge_client.open_broker import open_broker

TOPIC = "home/activity"


@pytest.fixture
def home(mosquitto_binary: Path, tmp_path: Path) -> Iterator[int]:
    with open_broker(mosquitto_binary, tmp_path / "home") as port:
        yield port


@pytest.fixture
def button(home: int) -> Iterator[Callable[[bytes], None]]:
    """Publishes on the topic, and waits until the broker has it."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", home)
    client.loop_start()

    def press(payload: bytes, *, retain: bool = False) -> None:
        client.publish(TOPIC, payload, qos=1, retain=retain).wait_for_publish(20)

    yield press
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def topic(home: int) -> Iterator[LabelTopic]:
    labels = Labels("topic", topic=TOPIC, classes=("rest", "walk"), broker=Broker("127.0.0.1", home))
    settings = EdgeSettings("pi-1", "test", "motion", labels=labels, learner=LearnerSettings("label"))
    one = LabelTopic(settings, SystemClock(), threading.Event())
    yield one
    one.stop()


def subscribed(topic: LabelTopic, button: Any, wait_until: WaitUntil) -> None:
    """Start, and wait until labels come through."""

    def heard() -> list[LabelEvent]:
        button(b"rest")
        time.sleep(0.02)
        return topic.take()

    topic.start()
    wait_until(heard, 20, "a first label")
    button(b"nothing that is a label")
    wait_until(lambda: topic.refused, 20, "all that was sent before")
    topic.take()
    topic.refused = 0


def test_a_press_labels_the_last_seconds(topic: LabelTopic, button: Any, wait_until: WaitUntil) -> None:
    subscribed(topic, button, wait_until)
    before = time.monotonic()
    button(b"walk")
    (event,) = wait_until(topic.take, 20, "the label")
    assert event.label == 1.0
    assert before <= event.last <= time.monotonic()
    assert event.last - event.first == pytest.approx(10.0)


def test_a_retained_label_is_not_taken(topic: LabelTopic, button: Any, wait_until: WaitUntil) -> None:
    button(b"walk", retain=True)
    subscribed(topic, button, wait_until)
    button(b"rest")
    assert [event.label for event in wait_until(topic.take, 20, "the label")] == [0.0]


def test_hostile_messages_are_counted_and_a_flood_is_bounded(
    topic: LabelTopic, button: Any, wait_until: WaitUntil
) -> None:
    subscribed(topic, button, wait_until)
    hostile = [b"", b"\xff", b"[" * 1000, b"9" * 2000, b'{"label": {"a": []}}', b'{"label": NaN}', b"sleep"]
    for payload in hostile:
        button(payload)
    wait_until(lambda: topic.refused == len(hostile), 20, "all of them to be refused")
    button(b"1" * 100_000)  # more than we told the broker to send
    for index in range(5 * WAITING):
        button(str(index).encode())
    button(b"nothing that is a label")
    wait_until(lambda: topic.refused == len(hostile) + 1, 20, "the last message")
    labels = [event.label for event in topic.take()]
    assert labels == list(range(4 * WAITING, 5 * WAITING))


def test_it_connects_again(mosquitto_binary: Path, tmp_path: Path, wait_until: WaitUntil) -> None:
    labels = Labels("topic", topic=TOPIC, broker=Broker("127.0.0.1", _free()))
    settings = EdgeSettings("pi-9", "test", "motion", labels=labels, learner=LearnerSettings("label"))
    one = LabelTopic(settings, SystemClock(), threading.Event())
    one.start()  # nobody is there yet
    for name in ("first", "second"):
        with open_broker(mosquitto_binary, tmp_path / name, labels.broker.port) as port:
            client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            client.connect("127.0.0.1", port)
            client.loop_start()

            def heard(client: mqtt.Client = client) -> list[LabelEvent]:
                client.publish(TOPIC, b"1")
                return one.take()

            wait_until(heard, 60, "a label")
            client.disconnect()
            client.loop_stop()
    one.stop()


def test_the_agent_learns_from_a_button(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle], button: Any, home: int
) -> None:
    bundle = bundles("classes")
    server.publish_model(bundle, 0)
    one = device(
        model="motion",
        sensor={"period_s": 0.01},
        learner={"target": "label"},
        labels={"source": "topic", "topic": TOPIC, "span_s": 3.0, "broker": {"port": home}},
    )
    server.task(bundle)
    server.wait_for(lambda: server.vitals().get("samples_seen", 0) > 200, 30, "samples")
    assert server.vitals()["scored"] == 0
    assert server.vitals()["buffer_samples"] == 0
    button(json.dumps({"label": 1, "age_s": 0.5, "span_s": 1.0}).encode())
    server.wait_for(lambda: server.vitals().get("scored", 0) >= 50, 30, f"the label to reach its windows; {one.log()}")
    for payload in (b"\xff" * 500, b"sleep", b'{"label": 1, "from": 0, "to": 1}'):
        button(payload)
    button(b"2")
    update = server.wait_for(server.updates, 30, "an update of what the button said")[0]
    assert update.samples >= 50
    assert one.process.poll() is None
    server.wait_for(lambda: server.vitals().get("missed_labels", 0) > 0, 30, "windows that no label came for")


def _free() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
