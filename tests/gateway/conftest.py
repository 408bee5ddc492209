"""A fleet around one gateway: accounts, a real broker, gateway processes, devices, the server end of the bridge."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from pollen import topics
from pollen.mosquitto import Account, Mosquitto
from tests.gateway.bridge_server import BridgeServer

PROJECT = Path(__file__).parents[2]
FLEET = "test"
DEVICES = ("device-1", "device-2", "device-3")
GATEWAYS = ("gateway-1", "gateway-2")
ACCOUNTS = [
    *(Account(name, f"secret of {name}", "device") for name in DEVICES),
    *(Account(name, f"secret of {name}", "gateway") for name in GATEWAYS),
    Account("observer-1", "secret of observer-1", "observer"),
]
WAIT_S = 20.0


class GatewayProcess:
    """`pollen-gateway` as a user runs it: a process with a settings file."""

    def __init__(self, config: Path, log: Path, environment: dict[str, str], server: BridgeServer) -> None:
        self.log = log
        self._name = config.stem
        self._server = server
        self._earlier = len(server.streams)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.command", "--config", config],
                env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
                stderr=output,
            )

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds: float = WAIT_S) -> int:
        return self.process.wait(seconds)

    @property
    def ready(self) -> bool:
        """Whether it is subscribed, and the server has its greeting."""
        if self.process.poll() is not None:
            pytest.fail(f"{self._name} ended with code {self.process.returncode}: {self.text}")
        greeted = any(stream.gateway == self._name for stream in self._server.streams[self._earlier :])
        return greeted and "is ready" in self.text

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")


GatewayFactory = Callable[..., GatewayProcess]


class Device:
    """A device as the broker sees one: its account, its topics, MQTT 5."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.received: list[MQTTMessage] = []
        self._reasons: dict[int, Any] = {}
        self._news = threading.Condition()
        self.client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.username_pw_set(name, f"secret of {name}")
        self.client.on_connect = lambda *_: self._tell()
        self.client.on_publish = self._on_publish
        self.client.on_message = lambda _client, _userdata, message: self.received.append(message)
        self.client.on_subscribe = self._on_subscribe
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()
        self._wait(self.client.is_connected)

    def publish(self, leaf: str, payload: bytes, *, qos: int = 1, retain: bool = False, device: str = "") -> int:
        """Publish and wait for the broker's PUBACK; returns its reason code."""
        return self.publish_to(f"pollen/1/{FLEET}/d/{device or self.name}/{leaf}", payload, qos, retain)

    def publish_to(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> int:
        info = self.client.publish(topic, payload, qos, retain)
        self._wait(lambda: info.mid in self._reasons)
        return int(self._reasons[info.mid].value)

    def subscribe(self, topic: str) -> None:
        mid = self.client.subscribe(topic, 1)[1]
        self._wait(lambda: ("suback", mid) in self._reasons)

    def listen(self) -> None:
        for leaf in topics.TO_DEVICE:
            self.subscribe(topics.device(FLEET, self.name, leaf))

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._reasons[mid] = reason
        self._tell()

    def _on_subscribe(self, _client: Client, _userdata: Any, mid: int, reasons: Any, _properties: Any) -> None:
        self._reasons["suback", mid] = reasons  # type: ignore[index]
        self._tell()

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def _wait(self, condition: Callable[[], Any]) -> None:
        with self._news:
            if not self._news.wait_for(condition, WAIT_S):
                pytest.fail(f"{self.name}: no answer from the broker within {WAIT_S:g} s")


@pytest.fixture
def mosquitto(broker: Any) -> Mosquitto:
    started: Mosquitto = broker(ACCOUNTS, fleet=FLEET)
    return started


@pytest.fixture
def server() -> Iterator[BridgeServer]:
    one = BridgeServer()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def gateway(mosquitto: Mosquitto, server: BridgeServer, tmp_path: Path) -> Iterator[GatewayFactory]:
    """Starts gateway processes; `extra` is more TOML for the top of the file, `limits` for its [limits]."""
    started: list[GatewayProcess] = []

    def start(
        name: str = "gateway-1", *, extra: str = "", limits: str = "", environment: dict[str, str] | None = None
    ) -> GatewayProcess:
        config = tmp_path / f"{name}.toml"
        config.write_text(
            f'name = "{name}"\nfleet = "{FLEET}"\n{extra}\n'
            f'[broker]\nport = {mosquitto.port}\nusername = "{name}"\npassword = "secret of {name}"\n'
            f"[server]\nport = {server.port}\n[limits]\n{limits}\n",
            encoding="utf-8",
        )
        started.append(GatewayProcess(config, tmp_path / f"{name}-{len(started)}.log", environment or {}, server))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def device(mosquitto: Mosquitto) -> Iterator[Callable[..., Device]]:
    connected: list[Device] = []

    def connect(name: str = "device-1", port: int | None = None) -> Device:
        connected.append(Device(name, port or mosquitto.port))
        return connected[-1]

    yield connect
    for one in connected:
        one.stop()
