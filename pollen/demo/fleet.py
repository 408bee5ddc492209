"""The demo's fleet: broker, server, gateway and devices as processes, each with its settings file and log."""

import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pollen import mosquitto
from pollen.demo import processes, settings_files
from pollen.demo.network_cut import HOST, NetworkCut
from pollen.demo.processes import Child, Processes
from pollen.demo.sources import Source
from pollen.errors import PollenError
from pollen.mosquitto import Account, Mosquitto

FLEET: Final = "demo"
MODEL: Final = "demo"
GATEWAY: Final = "gateway-1"
OBSERVER: Final = "demo-observer"
DRAIN_S: Final = 15.0
UPDATE_BYTES: Final = 64 * 1024 * 1024
_STOP_S: Final = DRAIN_S + 10
_LISTEN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start. `tasks`: hyperparameters the server sends; `holdout`: file for its evaluation, or None."""

    folder: Path
    keras: Path
    bundle: Path
    sources: Mapping[str, Source]
    cut_device: str | None
    tasks: Mapping[str, Any]
    holdout: Path | None


class Fleet:
    """Starts everything of a plan, in the order in which it is needed, and stops it in the reverse."""

    def __init__(self, plan: Plan, binary: Path, processes: Processes) -> None:
        self.plan = plan
        self.state = plan.folder / "state"
        self.history = self.state / "server" / "history.jsonl"
        self._processes = processes
        names = [*plan.sources, GATEWAY, OBSERVER]
        self._passwords = {name: secrets.token_urlsafe(24) for name in names}
        roles: dict[str, mosquitto.Role] = {GATEWAY: "gateway", OBSERVER: "observer"}
        accounts = [Account(name, self._passwords[name], roles.get(name, "device")) for name in names]
        self.broker = Mosquitto(binary, self.state / "broker", fleet=FLEET, accounts=accounts)
        self._page_port = free_port()
        self.page = f"http://{HOST}:{self._page_port}/"
        self.cut: NetworkCut | None = None
        self.devices: dict[str, Child] = {}

    @property
    def observer_account(self) -> tuple[str, str]:
        """User name and password that may read everything."""
        return OBSERVER, self._passwords[OBSERVER]

    def start(self) -> None:
        """Start broker, server and gateway; raises PollenError when one does not come up."""
        self.broker.start()
        self._processes.adopt("broker", "broker", self.broker.process, self.broker.log)
        port = free_port()
        server = self._start("server", "server", "server.command", self._server_settings(port))
        _wait_until_listening(server, port)
        self._start(GATEWAY, "gateway", "gateway.command", self._gateway_settings(port))
        if self.plan.cut_device is not None:
            self.cut = NetworkCut(self.broker.port)

    def start_devices(self) -> None:
        """Start every device; they come online on their own."""
        for name in self.plan.sources:
            self.devices[name] = self._start(name, "device", "edge_client.command", self._device_settings(name))

    def device_state(self, name: str) -> Path:
        """Where a device keeps what must survive a restart."""
        return self.state / name

    def stop_devices(self) -> list[Child]:
        """Let the cut device back, then stop all devices, which wait for their receipts.

        Returns those that had to be killed.
        """
        if self.cut is not None:
            self.cut.restore()
        return processes.stop(list(self.devices.values()), _STOP_S)

    def stop_services(self) -> list[Child]:
        """Stop gateway, server and broker, in this order; returns who had to be killed."""
        late = []
        for role in ("gateway", "server", "broker"):
            late += processes.stop([child for child in self._processes.children if child.role == role], _STOP_S)
        if self.cut is not None:
            self.cut.close()
        return late

    def _start(self, name: str, role: processes.Role, module: str, settings: Mapping[str, Any]) -> Child:
        path = settings_files.write(self.plan.folder / "settings" / f"{name}.toml", settings)
        command = processes.entry(module, "--config", str(path.resolve()))
        return self._processes.start(name, role, command, self.plan.folder / "logs" / f"{name}.log")

    def _account(self, name: str, port: int) -> dict[str, Any]:
        return {"host": HOST, "port": port, "username": name, "password": self._passwords[name]}

    def _server_settings(self, port: int) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "fleet": FLEET,
            "bundle": self.plan.bundle.resolve(),
            "state_dir": (self.state / "server").resolve(),
            "listen": {"host": HOST, "port": port},
            "http": {"host": HOST, "port": self._page_port},
            "merge": {"rule": "fedasync", "options": {"alpha": 0.5, "staleness": "polynomial"}},
            "task": {"config": self.plan.tasks},
            "limits": {"update_bytes": UPDATE_BYTES},
            "publish": {"min_interval_s": 0.2},
        }
        if self.plan.holdout is not None:
            settings["evaluation"] = {"data": self.plan.holdout.resolve(), "interval_s": 2.0}
        return settings

    def _gateway_settings(self, server_port: int) -> dict[str, Any]:
        return {
            "fleet": FLEET,
            "name": GATEWAY,
            "broker": self._account(GATEWAY, self.broker.port),
            "server": {"host": HOST, "port": server_port},
            "limits": {"update_bytes": UPDATE_BYTES},
        }

    def _device_settings(self, name: str) -> dict[str, Any]:
        source = self.plan.sources[name]
        port = self.cut.port if self.cut is not None and name == self.plan.cut_device else self.broker.port
        return {
            "device": name,
            "fleet": FLEET,
            "model": MODEL,
            "state_dir": self.device_state(name).resolve(),
            "broker": {**self._account(name, port), "keepalive_s": 10},
            "sensor": source.sensor,
            "learner": source.learner,
            "training": {"new_samples": source.new_samples, "fetch_s": 2.0},
            "upload": {"retry_s": 5.0, "drain_s": DRAIN_S, "vitals_s": 1.0},
            "session": {"expiry_s": 3600, "will_delay_s": 2, "reconnect_min_s": 0.2, "reconnect_max_s": 2.0},
        }


def free_port() -> int:
    """A TCP port on the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(child: Child, port: int) -> None:
    deadline = time.monotonic() + _LISTEN_S
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise PollenError(f"{child.name} ended at its start: {child.last_line()}; its log: {child.log}")
        try:
            with socket.create_connection((HOST, port), timeout=1.0):
                return
        except OSError:
            time.sleep(0.05)
    raise PollenError(f"{child.name} does not listen on port {port} after {_LISTEN_S:g} s; its log: {child.log}")
