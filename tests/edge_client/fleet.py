"""The other side of a device in tests: a real MQTT client that says what the server would, and device processes."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from pollen import encoding, messages, settings, topics
from pollen.bundle import Bundle
from pollen.messages import Birth, Death, Receipt, Result, Snapshot, Task, Update
from pollen.mosquitto import Mosquitto

FLEET = "test"
LIMIT = 10**8


class Server:
    """Publishes models, tasks and receipts, and records what devices publish."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.port = broker.port
        self.received: list[tuple[str, str, bytes]] = []  # device, leaf, payload
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="gateway-1", protocol=mqtt.MQTTProtocolVersion.MQTTv5
        )
        self._client.username_pw_set("gateway-1", "secret-gateway")
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(
            topics.device(FLEET, "+", "state")[:-5] + "+", qos=1
        )
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self.wait_for(self._client.is_connected, 10, "the server's connection")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.01)
        pytest.fail(f"not within {seconds:g} s: {what}; got {[(d, leaf) for d, leaf, _ in self.received][-20:]}")

    def publish_raw(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.wait_for(self._client.is_connected, 10, "the server's connection")
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def publish_model(self, bundle: Bundle, version: int, shared: np.ndarray | None = None) -> None:
        values = bundle.shared if shared is None else shared
        model = bundle.manifest.model
        digest = hashlib.sha256(values.tobytes()).digest()
        snapshot = Snapshot(model, version, digest, encoding.named(values, bundle.manifest.shared))
        self.publish_raw(topics.model(FLEET, model, "bundle"), bundle.to_bytes(), retain=True)
        self.publish_raw(topics.model(FLEET, model, "weights"), messages.encode(snapshot), retain=True)

    def task(
        self,
        bundle: Bundle,
        *,
        kind: Any = "train",
        version: int = 0,
        device: str = "pi-1",
        config: Mapping[str, Any] | None = None,
        task: bytes | None = None,
    ) -> bytes:
        task = task or os.urandom(16)
        message = Task(task, kind, bundle.manifest.model, version, bundle.digest, config or {})
        self.publish_raw(topics.device(FLEET, device, "task"), messages.encode(message))
        return task

    def receipt(
        self, reply: Update | Result, *, outcome: Any = "merged", device: str = "pi-1", reason: str = ""
    ) -> None:
        seq = reply.seq if isinstance(reply, Update) else 0
        message = Receipt(reply.task, seq, outcome, version=1, weight=1.0, reason=reason)
        self.publish_raw(topics.device(FLEET, device, "receipt"), messages.encode(message))

    def payloads(self, leaf: str, device: str = "pi-1") -> list[bytes]:
        return [payload for name, found, payload in list(self.received) if (name, found) == (device, leaf)]

    def updates(self, task: bytes | None = None) -> list[Update]:
        found = [messages.decode_update(payload, LIMIT) for payload in self.payloads("update")]
        return [update for update in found if task in (None, update.task)]

    def update(self, task: bytes, seconds: float = 20) -> Update:
        found: list[Update] = self.wait_for(lambda: self.updates(task), seconds, f"update for {task.hex()[:8]}")
        return found[0]

    def result(self, task: bytes, seconds: float = 20) -> Result:
        def found() -> list[Result]:
            results = [messages.decode_result(payload) for payload in self.payloads("result")]
            return [result for result in results if result.task == task]

        answers: list[Result] = self.wait_for(found, seconds, f"result for {task.hex()[:8]}")
        return answers[0]

    def vitals(self, device: str = "pi-1") -> dict[str, float]:
        payloads = self.payloads("vitals", device)
        return dict(messages.decode_vitals(payloads[-1]).values) if payloads else {}

    def states(self, device: str = "pi-1") -> list[Birth | Death]:
        return [messages.decode_state(payload) for payload in self.payloads("state", device)]

    def online(self, device: str = "pi-1") -> bool:
        states = self.states(device)
        return bool(states) and isinstance(states[-1], Birth)

    def _on_message(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        parts = topics.parse_device(message.topic)
        if parts is not None:
            self.received.append((parts.device, parts.leaf, bytes(message.payload)))


class Device:
    """One `pollen-edge` process."""

    def __init__(self, python: str, settings_file: Path, environment: dict[str, str]) -> None:
        self.settings_file = settings_file
        self._log = settings_file.with_suffix(".log")
        self.state_dir = settings_file.parent / "state"
        self._stream = self._log.open("ab")
        self.process = subprocess.Popen(
            [python, "-m", "edge_client.command", "--config", str(settings_file)],
            stdout=self._stream,
            stderr=self._stream,
            env=environment,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def terminate(self, seconds: float = 15) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._stream.close()


def rows(device: Device) -> list[tuple[Any, ...]]:
    """What is in the outbox: task, handed, payload."""
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        return database.execute("SELECT task, handed, payload FROM reply").fetchall()


def stream(folder: Path, rows: int = 600) -> Path:
    """Two noisy sines as a recording: something a model can learn to forecast."""
    rng = np.random.default_rng(3)
    t = np.arange(rows)
    x = np.stack([np.sin(t / 3), np.cos(t / 3)], axis=1) + rng.normal(0, 0.05, (rows, 2))
    path = folder / "stream.npz"
    np.savez(path, X=x.astype(np.float32))
    return path


def write_settings(folder: Path, device: str, port: int, tables: Mapping[str, Any]) -> Path:
    """An edge.toml for fast tests: a replayed stream at 200 Hz, `tables` laid over it."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, dict[str, Any]] = {
        "broker": {"port": port, "username": device, "password": f"secret-{device}"},
        "sensor": {"kind": "replay", "period_s": 0.005},
        "learner": {},
        "storage": {"flush_s": 0.2},
        "training": {"new_samples": 32, "max_steps": 40, "fetch_s": 2.0},
        "upload": {"vitals_s": 1.0, "retry_s": 60.0, "drain_s": 5.0},
        "session": {"reconnect_min_s": 0.1, "reconnect_max_s": 0.5, "will_delay_s": 1},
        "logging": {"level": "debug"},
    }
    for name, table in tables.items():
        if isinstance(table, Mapping):
            content.setdefault(name, {}).update(table)
    if content["sensor"]["kind"] == "replay" and "options" not in content["sensor"]:
        content["sensor"]["options"] = {"file": str(stream(folder)), "loop": True}
    model = tables.get("model", "telemetry")
    lines = [
        f'device = "{device}"',
        f'fleet = "{tables.get("fleet", FLEET)}"',
        f'model = "{model}"',
        'state_dir = "state"',
    ]
    for name, table in content.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path = folder / "edge.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value) if isinstance(value, int | float) else f'"{value}"'


def loaded(path: Path) -> Any:
    """The settings a file holds."""
    from edge_client.settings import EdgeSettings

    return settings.load(EdgeSettings, path, {})


def decoded(update: Update, bundle: Bundle) -> np.ndarray:
    """An update's delta [F]."""
    delta = np.empty(bundle.manifest.shared_size, np.float32)
    encoding.decode_into(delta, update.delta, bundle.manifest.shared)
    return delta
