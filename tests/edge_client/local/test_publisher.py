"""Predictions on an MQTT topic, and what Home Assistant is told of them."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_client.learning.prediction import Prediction
from edge_client.local import home_assistant
from edge_client.local.publisher import WAITING, PredictionPublisher
from edge_client.sensors import Channel
from edge_client.settings import Anomaly, EdgeSettings
from edge_client.settings.local import Predictions
from pollen.broker import Broker
from pollen.errors import SettingsError
from tests.edge_client.open_broker import open_broker

CHANNELS = (Channel("temperature", "°C"), Channel("load 1 min", ""))


def prediction(number: int, *, anomaly: bool = False) -> Prediction:
    values = np.array([21.5, 0.25], np.float32)
    return Prediction(number, 1e9, True, values, version=3, error=0.1, anomaly=0.5, is_anomaly=anomaly)


class Listener:
    """Someone on the local broker who keeps everything."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("#")
        self.client.on_message = lambda _c, _u, message: self.messages.append(
            (message.topic, bytes(message.payload), message.retain)
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def on(self, topic: str) -> list[bytes]:
        return [payload for found, payload, _ in list(self.messages) if found == topic]


@pytest.fixture
def port(mosquitto_binary: Path, tmp_path: Path) -> Iterator[int]:
    with open_broker(mosquitto_binary, tmp_path / "house") as port:
        yield port


@pytest.fixture
def listener(port: int, wait_until) -> Iterator[Listener]:  # type: ignore[no-untyped-def]
    one = Listener(port)
    wait_until(one.client.is_connected, 20, "the listener's connection")
    yield one
    one.client.disconnect()
    one.client.loop_stop()


TOPIC = "house/pi-1/prediction"
AVAILABILITY = f"{TOPIC}/availability"


def publisher(port: int, publish: str = "always") -> PredictionPublisher:
    predictions = Predictions(publish=publish, topic=TOPIC, discovery="homeassistant", broker=Broker(port=port))  # type: ignore[arg-type]
    anomaly = Anomaly(enabled=publish == "anomalies")
    settings = EdgeSettings("pi-1", "test", "telemetry", Path("state"), predictions=predictions, anomaly=anomaly)
    return PredictionPublisher(settings)


def test_predictions_arrive_as_json(port, listener, wait_until) -> None:  # type: ignore[no-untyped-def]
    one = publisher(port)
    one.start()
    wait_until(one._client.is_connected, 20, "the connection")

    def first() -> bytes | None:
        one.publish(prediction(7))
        return next(iter(listener.on(TOPIC)), None)

    assert json.loads(wait_until(first, 20, "a prediction"))["values"] == [21.5, 0.25]
    one.stop()


def test_only_anomalies_means_their_beginning_and_their_end(port, listener, wait_until) -> None:  # type: ignore[no-untyped-def]
    one = publisher(port, "anomalies")
    one.start()
    wait_until(one._client.is_connected, 20, "the connection")
    for number, anomaly in enumerate([False, True, True, True, False, False]):
        one.publish(prediction(number, anomaly=anomaly))
    found = wait_until(lambda: len(listener.on(TOPIC)) >= 2 and listener.on(TOPIC), 20, "both")
    one.stop()
    assert [(json.loads(one)["window"], json.loads(one)["anomaly"]) for one in found] == [(1, True), (4, False)]


def test_a_broker_that_is_not_there_costs_nothing(tmp_path: Path) -> None:
    one = publisher(1)
    one.start()
    for number in range(1000):
        one.publish(prediction(number))
    one.stop()


def test_home_assistant_is_told_again_after_the_broker_forgot(mosquitto_binary, tmp_path, wait_until) -> None:  # type: ignore[no-untyped-def]
    topic = home_assistant.discovery_topic("homeassistant", "pi-1")
    with open_broker(mosquitto_binary, tmp_path / "house") as port:
        one = publisher(port)
        one.describe(CHANNELS, period_s=1.0)
        one.start()
        first = Listener(port)
        message = json.loads(wait_until(lambda: first.on(topic), 20, "discovery")[0])
        assert wait_until(lambda: first.on(AVAILABILITY), 20, "availability") == [b"online"]
        first.client.loop_stop()
    with open_broker(mosquitto_binary, tmp_path / "house", port):
        second = Listener(port)
        assert json.loads(wait_until(lambda: second.on(topic), 20, "discovery again")[0]) == message
        one.stop()
        assert wait_until(lambda: second.on(AVAILABILITY)[-1:] == [b"offline"], 20, "offline")
        second.client.loop_stop()


def test_the_discovery_message_says_what_each_value_is() -> None:
    topic = home_assistant.discovery_topic("homeassistant", "pi.1")
    message = home_assistant.discovery("pi.1", "telemetry", TOPIC, CHANNELS, availability=AVAILABILITY, expires_s=60)
    assert re.fullmatch(r"homeassistant/device/[a-zA-Z0-9_-]+/config", topic)
    parts = message["components"]
    assert {part["platform"] for part in parts.values()} == {"sensor", "binary_sensor"}
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", name) and part["unique_id"] == name for name, part in parts.items())
    forecast = parts["pollen_pi_1_load_1_min"]
    assert forecast["value_template"] == "{{ value_json['values'][1] }}"
    assert "unit_of_measurement" not in forecast
    assert parts["pollen_pi_1_temperature"]["unit_of_measurement"] == "°C"
    assert message["availability"] == [{"topic": AVAILABILITY}]


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        ((), "{{ value_json['values'].index("),
        (("dry", "it's rain"), """{{ ["dry", "it's rain"][value_json['values'].index("""),
    ],
)
def test_home_assistant_shows_the_most_probable_label(classes: tuple[str, ...], shown: str) -> None:
    message = home_assistant.discovery("pi-1", "m", TOPIC, (), labels=classes, availability="a", expires_s=60)
    assert message["components"]["pollen_pi-1_label"]["value_template"].startswith(shown)


def test_no_anomaly_is_announced_where_none_is_looked_for(port, listener, wait_until) -> None:  # type: ignore[no-untyped-def]
    one = publisher(port)
    one.describe(CHANNELS, period_s=1.0)
    one.start()
    topic = home_assistant.discovery_topic("homeassistant", "pi-1")
    message = json.loads(wait_until(lambda: listener.on(topic), 20, "discovery")[0])
    one.stop()
    assert set(message["components"]) == {"pollen_pi-1_temperature", "pollen_pi-1_load_1_min", "pollen_pi-1_error"}


def test_predictions_for_a_broker_that_reads_nothing_do_not_pile_up(wait_until) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = publisher(listening.getsockname()[1])
        one.start()
        stuck, _ = listening.accept()
        with stuck:
            stuck.recv(1000)
            stuck.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK; it reads no more
            wait_until(one._client.is_connected, 20, "the connection")
            for number in range(100_000):
                one.publish(prediction(number))
            assert len(one._client._out_packet) <= WAITING
        one.stop()


def test_tls_files_that_are_missing_are_named_with_their_table(tmp_path: Path) -> None:
    predictions = Predictions(publish="always", broker=Broker(ca=tmp_path / "no.pem"))
    with pytest.raises(SettingsError, match=r"^predictions\.broker\.ca.*no\.pem"):
        PredictionPublisher(EdgeSettings("pi-1", "test", "telemetry", tmp_path, predictions=predictions))
