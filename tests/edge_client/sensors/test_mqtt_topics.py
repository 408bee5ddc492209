"""Topics of a local MQTT network, on a real Mosquitto."""

import contextlib
import datetime
import getpass
import json
import logging
import math
import random
import socket
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge_client.sensors import mqtt_topics
from edge_client.sensors.mqtt_topics import PAYLOAD_BYTES, MqttOptions, MqttSensor, payload_values
from edge_client.sensors.options import parse
from edge_client.settings import EdgeSettings, Sensor
from pollen import topics
from pollen.errors import SensorError, SettingsError
from pollen.mosquitto import Account, Mosquitto
from pollen.settings import to_toml

WaitUntil = Callable[..., Any]


class Home:
    """A house's broker, and the gadget that publishes on it."""

    def __init__(self, broker: Mosquitto, prefix: str) -> None:
        self.broker = broker
        self.prefix = prefix
        self._gadget = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="gadget")
        self._gadget.username_pw_set("gadget", "secret-gadget")
        self._gadget.reconnect_delay_set(1, 1)
        self._gadget.connect("127.0.0.1", broker.port)
        self._gadget.loop_start()

    def options(self, channels: str, **more: Any) -> dict[str, Any]:
        """`channels` with topics under the house's prefix."""
        full = ", ".join(part.strip().replace("=", f"={self.prefix}/", 1) for part in channels.split(","))
        own = {"channels": full, "port": self.broker.port, "username": "pi", "password": "secret-pi"}
        return own | more

    def publish(self, topic: str, payload: object, *, retain: bool = False) -> None:
        content = payload if isinstance(payload, str | bytes) else json.dumps(payload)
        self._gadget.publish(f"{self.prefix}/{topic}", content, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self._gadget.disconnect()
        self._gadget.loop_stop()


@pytest.fixture
def home(broker: Callable[..., Mosquitto]) -> Iterator[Home]:
    # The broker's rules let a gateway publish under the models' topics, and an observer read them.
    accounts = [Account("gadget", "secret-gadget", "gateway"), Account("pi", "secret-pi", "observer")]
    one = Home(broker(accounts), topics.model("test", "home", "weights").rpartition("/")[0])
    yield one
    one.close()


@pytest.fixture
def sensor_of(home: Home) -> Iterator[Callable[..., MqttSensor]]:
    opened: list[MqttSensor] = []

    def start(channels: str, **more: Any) -> MqttSensor:
        opened.append(MqttSensor(home.options(channels, **more)))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def awaited(sensor: MqttSensor, wait_until: WaitUntil) -> list[float]:
    reading = wait_until(sensor.read, 10, "a reading")
    assert reading.values.dtype == np.float32
    assert reading.values.shape == (1, len(sensor.channels))
    return reading.values[0].tolist()


def test_plain_numbers_and_json_become_channels(home: Home, sensor_of: Any, wait_until: WaitUntil) -> None:
    sensor = sensor_of(
        "t=kitchen:temperature, power=plug:ENERGY.Power, door=door, second=list:0.values.1",
        units="°C, W, , ",
        ranges="-40..85, , , ",
    )
    assert [(one.name, one.unit, one.low) for one in sensor.channels] == [
        ("t", "°C", -40),
        ("power", "W", -math.inf),
        ("door", "", -math.inf),
        ("second", "", -math.inf),
    ]
    assert sensor.read() is None, "nothing came yet"
    home.publish("kitchen", {"temperature": 21.5, "battery": 97})
    home.publish("plug", {"ENERGY": {"Power": "12.5"}})
    home.publish("door", "ON")
    home.publish("list", [{"values": [1, 2]}])
    found: list[float] = []

    def complete() -> bool:
        found[:] = awaited(sensor, wait_until)
        return all(map(math.isfinite, found))

    wait_until(complete, 10, "all four channels")
    assert found == [21.5, 12.5, 1.0, 2.0]
    assert sensor.read() is None, "nothing new since"


def test_a_channel_keeps_its_value_while_others_change(home: Home, sensor_of: Any, wait_until: WaitUntil) -> None:
    sensor = sensor_of("t=room:temperature, h=room:humidity")
    home.publish("room", {"temperature": 20})
    first = awaited(sensor, wait_until)
    assert first[0] == 20
    assert math.isnan(first[1]), "the humidity hasn't been said yet"
    home.publish("room", {"humidity": 50})
    assert awaited(sensor, wait_until) == [20, 50]
    home.publish("room", {"linkquality": 7})
    home.publish("room", {"humidity": "unavailable"})
    values = awaited(sensor, wait_until)
    assert values[0] == 20
    assert math.isnan(values[1])


def test_a_value_that_is_too_old_is_nan(home: Home, sensor_of: Any, wait_until: WaitUntil) -> None:
    sensor = sensor_of("old=a, new=b", stale_s=0.3)
    home.publish("a", "1")
    assert awaited(sensor, wait_until)[0] == 1
    threading.Event().wait(0.35)
    home.publish("b", "2")
    values = awaited(sensor, wait_until)
    assert math.isnan(values[0])
    assert values[1] == 2


def test_retained_values_are_taken_only_when_asked_for(home: Home, sensor_of: Any, wait_until: WaitUntil) -> None:
    home.publish("setpoint", "19", retain=True)
    without = sensor_of("s=setpoint")
    home.publish("setpoint", "20")
    assert awaited(without, wait_until) == [20]
    without.close()
    assert awaited(sensor_of("s=setpoint", retained=True), wait_until) == [19]


def test_a_lost_broker_is_an_error_and_the_next_connection_reads_on(
    home: Home, sensor_of: Any, wait_until: WaitUntil
) -> None:
    sensor = sensor_of("t=room")
    home.publish("room", "1")
    assert awaited(sensor, wait_until) == [1]
    home.broker.stop()

    def failed() -> bool:
        try:
            sensor.read()
        except SensorError as error:
            return "connection is lost" in str(error)
        return False

    wait_until(failed, 10, "the loss to be noticed")
    with pytest.raises(SensorError, match="can't be reached"):
        sensor_of("t=room")
    home.broker.start()
    again = sensor_of("t=room")

    def published() -> Any:
        with contextlib.suppress(RuntimeError):  # the gadget may not be back yet
            home.publish("room", "2")
        return again.read()

    assert wait_until(published, 20, "a value from the new connection").values.tolist() == [[2]]


def test_a_refused_password_is_named_without_saying_it(home: Home) -> None:
    with pytest.raises(SensorError, match=r"refused the connection.*sensor\.options\.username") as refused:
        MqttSensor(home.options("t=room") | {"password": "wrong-word"})
    assert "wrong-word" not in str(refused.value)


def test_a_refused_topic_is_named(mosquitto_binary: Path, tmp_path: Path, wait_until: WaitUntil) -> None:
    """By the one of Mosquitto's own access rules that refuses subscriptions; its files only drop what is published."""
    plugin = Path("/usr/lib") / sysconfig.get_config_var("MULTIARCH") / "mosquitto_dynamic_security.so"
    if not plugin.exists():
        pytest.skip(f"{plugin} is not there: this Mosquitto refuses no subscriptions")
    rules = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    (tmp_path / "rules.json").write_text(json.dumps({"defaultACLAccess": rules}))
    lines = f"allow_anonymous true\nplugin {plugin}\nplugin_opt_config_file {tmp_path / 'rules.json'}\n"
    with (
        started(mosquitto_binary, tmp_path, lines, wait_until) as port,
        pytest.raises(SensorError, match=r"refused topic 'room'.*access rules"),
    ):
        MqttSensor({"channels": "t=room", "port": port})


@contextlib.contextmanager
def started(binary: Path, folder: Path, lines: str, wait_until: WaitUntil) -> Iterator[int]:
    """A Mosquitto with a configuration of its own; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "mosquitto.conf").write_text(f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\n{lines}")
    process = subprocess.Popen([binary, "-c", folder / "mosquitto.conf"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), 15, "the broker")
        yield port
    finally:
        process.kill()
        process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_broker_with_tls_is_believed_by_its_authority(
    mosquitto_binary: Path, tmp_path: Path, wait_until: WaitUntil
) -> None:
    pytest.importorskip("cryptography")
    from tests.edge_client.authority import Authority

    now = datetime.datetime.now(datetime.UTC)
    dates = (now - datetime.timedelta(days=1), now + datetime.timedelta(days=1))
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path, dates), Authority(tmp_path / "other", dates)
    certificate, key = authority.issue("home", dates)
    lines = f"allow_anonymous true\ncafile {authority.ca}\ncertfile {certificate}\nkeyfile {key}\n"
    with started(mosquitto_binary, tmp_path, lines, wait_until) as port:
        MqttSensor({"channels": "t=room", "port": port, "ca": str(authority.ca)}).close()
        with pytest.raises(SensorError, match=r"can't be reached.*certificate verify failed"):
            MqttSensor({"channels": "t=room", "port": port, "ca": str(other.ca)})
        with pytest.raises(SettingsError, match=r"missing\.pem"):
            MqttSensor({"channels": "t=room", "port": port, "ca": str(tmp_path / "missing.pem")})


@pytest.mark.parametrize("seed", range(12))
def test_a_peer_that_speaks_no_mqtt_is_an_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing, or garbage that begins with a valid CONNACK or not, and hangs up or doesn't."""
    monkeypatch.setattr(mqtt_topics, "_ANSWER_S", 1.0)
    chosen = random.Random(seed)
    connack = bytes((0x20, 3, 0, 0, 0)) if seed % 3 else b""
    noise = b"" if seed == 0 else connack + chosen.randbytes(chosen.choice((2, 50, 5000)))
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(5)
                with contextlib.suppress(OSError):
                    peer.recv(1000)
                    peer.sendall(noise)
                    while seed % 2 == 0 and peer.recv(1000):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SensorError):
            MqttSensor({"channels": "t=room", "port": listening.getsockname()[1]})
        thread.join(10)
    assert set(threading.enumerate()) <= threads


def test_payloads_that_are_no_numbers_are_nan_and_logged_once(
    home: Home, sensor_of: Any, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    sensor = sensor_of("t=room:t")
    with caplog.at_level(logging.WARNING):
        for payload in (b"\xff\xfe", "[" * 60000, '{"t": [1]}', '{"t": 1e999}', "{" + " " * PAYLOAD_BYTES + '"t": 1}'):
            home.publish("room", payload)
            if len(payload) < PAYLOAD_BYTES:
                assert math.isnan(awaited(sensor, wait_until)[0])
    home.publish("room", {"t": 4})
    wait_until(lambda: (reading := sensor.read()) is not None and reading.values[0, 0] == 4, 10, "a good payload")
    assert sum("skipped" in record.getMessage() for record in caplog.records) == 1


def test_a_payload_that_is_too_long_is_not_parsed() -> None:
    fits = b"1" + b" " * (PAYLOAD_BYTES - 1)
    assert payload_values(fits, [""]) == [1]
    assert math.isnan(payload_values(fits + b" ", [""])[0] or 0)


def test_a_topic_with_a_colon_ends_with_one_more() -> None:
    sensor_options = {"channels": "t=ble/a4:c1:38:, u=plain", "port": 1}
    with pytest.raises(SensorError, match="can't be reached"):
        MqttSensor(sensor_options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"channels": ""}, "channels"),
        ({"channels": "kitchen"}, "channels.*name=topic"),
        ({"channels": "t=a/+"}, "channels.*wildcards"),
        ({"channels": "t=a, t=b"}, "channels.*twice"),
        ({"channels": "t=a", "stale_s": -1.0}, "stale_s"),
        ({"channels": "t=a", "units": "a,b"}, "units"),
        ({"channels": "t=a", "port": 0}, "port"),
        ({"channels": "t=a", "qos": 1}, "qos"),
    ],
)
def test_options_are_checked_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=rf"sensor\.options\.{named}"):
        MqttSensor(options)


def test_the_password_is_shown_nowhere() -> None:
    options = {"channels": "t=a", "password": "wrong-word", "broker_password": "", "username": "pi"}
    settings = EdgeSettings(device="pi-1", fleet="f", model="m", sensor=Sensor(kind="mqtt", options=options))
    shown = to_toml(settings)
    assert "wrong-word" not in shown
    assert '"password" = "********", "broker_password" = "", "username" = "pi"' in shown
    assert "wrong-word" in to_toml(settings, show_secrets=True)


def test_a_password_of_the_wrong_type_is_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"sensor\.options\.password must be of type str") as raised:
        parse(MqttOptions, {"channels": "t=house/t", "password": 918273})
    assert "918273" not in str(raised.value)
