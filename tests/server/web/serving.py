"""A real pollen-server process with its web side, and a fleet of simulated devices behind a real gateway stream."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from pollen import messages
from pollen.bridge import DeviceState, DeviceVitals, ToDevice
from pollen.bundle import Bundle
from pollen.messages import Birth, Death, Session, Task, Vitals
from tests.server.gateway_client import GatewayClient, bundle, update

ROOT = Path(__file__).parents[3]
HOST = "127.0.0.1"
FLEET = "garden"
MODEL = "weather"
TOKEN = "a-token-of-the-tests-that-is-long-enough"  # noqa: S105
START_S = 60.0
SETTINGS = """fleet = "{fleet}"
bundle = "weather.bundle"
state_dir = "state"
[listen]
port = {port}
[http]
port = {http}
token = "{token}"
[publish]
min_interval_s = 0.2
[merge]
rule = "fedasync"
options = {{alpha = 0.3}}
[evaluation]
hook = "heldout_weather:score"
interval_s = {interval_s}
"""
HOOK = '''"""What stands for held-out data: the loss falls with the versions."""


def score(version, arrays):
    return 0.2 + 1.1 / (1 + version / 60), {"accuracy": 0.97 - 0.6 / (1 + version / 50)}
'''


class Serving:
    """`pollen-server` in `folder`; its ports stay the same over restarts."""

    def __init__(self, folder: Path, *, token: str = TOKEN, interval_s: float = 1.0) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.bundle: Bundle = bundle((30, 20), model=MODEL)
        self.folder = folder
        self.bundle.write(folder / "weather.bundle")
        (folder / "heldout_weather.py").write_text(HOOK)
        self._settings = folder / "server.toml"
        self._settings.write_text(
            SETTINGS.format(fleet=FLEET, port=self.port, http=self.http_port, token=token, interval_s=interval_s)
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"http://{HOST}:{self.http_port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [sys.executable, "-m", "server.command", "--config", str(self._settings)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        self.wait_for(lambda: self._asked("/readyz") == 200, "it is ready")

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(START_S) == 0, self.log

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = START_S) -> Any:
        """The condition's first true value; fails after `seconds`, or when the process has ended."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process is not None
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.log}"
            time.sleep(0.05)
        return value

    def _asked(self, path: str) -> int:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask(path)[0]
        return 0

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """(status, headers, body) of a request on a connection of its own."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=20)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def api(self, path: str) -> Any:
        """The JSON at `path`."""
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)


class SimulatedFleet:
    """Devices that are mere payloads behind one real gateway stream; they answer their tasks when asked to."""

    def __init__(self, serving: Serving, names: list[str], seed: int = 1) -> None:
        self._serving = serving
        self._gateway = GatewayClient(serving.port, FLEET, "gateway-1")
        self._chance = random.Random(seed)
        self.tasks: dict[str, Task] = {}
        self.names = names
        self.merged = dict.fromkeys(names, 0)
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._take, daemon=True)

    def __enter__(self) -> Self:
        self._gateway.__enter__()
        self._reader.start()
        for name in self.names:
            self.birth(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._gateway.__exit__()

    def birth(self, name: str, **facts: Any) -> None:
        """`name` comes online; `facts`: fields of its birth."""
        usual = Birth(
            Session(name.encode().ljust(8)[-8:], 1), "0.1.0", "3.11.2", "ai-edge-litert 2.3.0", "aarch64", 4,
            4 * 1024**3, ("bme280",), (MODEL,), "synchronised",
        )  # fmt: skip
        self._gateway.send(DeviceState(name, messages.encode(replace(usual, **facts))))

    def death(self, name: str, reason: str = "lost") -> None:
        """`name` goes offline."""
        self._gateway.send(DeviceState(name, messages.encode(Death(Session(name.encode().ljust(8)[-8:], 1), reason))))

    def vitals(self, name: str, **values: float) -> None:
        """Vitals of `name`, beside which `values` are told."""
        merged, chance = self.merged[name], self._chance
        usual = {
            "rss_bytes": 61e6 + chance.uniform(0, 1e6), "load_1min": chance.uniform(0.2, 0.6),
            "ram_free_bytes": 3.1e9, "disk_free_bytes": 21.4e9, "temperature_celsius": 48 + chance.gauss(0, 0.7),
            "samples_seen": 40.0 * (merged + 1), "updates_made": float(merged), "outbox_rows": 0.0,
            "sent_bytes": 4200.0 * merged, "received_bytes": 5100.0 * merged, "train_seconds_total": 0.84 * merged,
            "reconnects": 1.0, "prequential_error": 0.2 + 0.25 / (1 + merged / 6) + chance.gauss(0, 0.008),
            "baseline_error": 0.42 + chance.gauss(0, 0.008), "drifts": 0.0, "sensor_silent_s": 0.4,
        }  # fmt: skip
        self._gateway.send(DeviceVitals(name, messages.encode(Vitals(usual | values))))

    def _take(self) -> None:
        """Keep the tasks that come down; whatever else does is for nobody here."""
        while not self._ended.is_set() and self._gateway.error is None:
            with contextlib.suppress(AssertionError):  # nothing came for a while
                frame = self._gateway.next(lambda _frame: True)
                if isinstance(frame, ToDevice) and frame.leaf == "task":
                    self.tasks[frame.device] = messages.decode_task(frame.payload)

    def wait_for_tasks(self, *names: str) -> None:
        """Wait until each of `names` has a task to do."""
        self._serving.wait_for(lambda: all(name in self.tasks for name in names), f"tasks for {names}")

    def answer(self, name: str, value: float = 0.01, **changes: Any) -> None:
        """Upload the update for the task of `name`, with some of its fields changed; it must be there."""
        task, merged = self.tasks.pop(name), self.merged[name]
        loss = 0.3 + 0.9 / (1 + task.version / 50) + self._chance.gauss(0, 0.02)
        fields = {"seq": merged + 1, "metrics": {"loss_before": loss, "loss_after": 0.8 * loss}}
        self._gateway.upload(name, update(task, self._serving.bundle, value, **(fields | changes)))
        self.merged[name] += 1

    def merge(self, name: str) -> None:
        """Have one update of `name` merged."""
        self.wait_for_tasks(name)
        before = self._serving.api(f"/api/devices/{name}")["updates"]
        self.answer(name)
        self._serving.wait_for(lambda: self._serving.api(f"/api/devices/{name}")["updates"] > before, "a merge")

    def refuse(self, name: str) -> None:
        """Have an update of `name` refused, since it is not finite."""
        self.wait_for_tasks(name)
        self.answer(name, float(np.inf))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
