"""The three services as systemd would start them, in the sandbox of their unit files, and what they tell it."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import pytest

from edge_client.settings import EdgeSettings, Learner, Sensor, Training, Upload
from gateway.settings import Gateway
from gateway.settings import Server as GatewayServer
from pollen import settings
from pollen.broker import Broker
from pollen.http_settings import Http
from pollen.mosquitto import Account, Mosquitto
from server.bridge_service import Listen
from server.settings import Merging, Publishing, Tasks
from server.settings import Settings as ServerSettings
from tests.deploy.unit_files import PROJECT, SYSTEMD, read
from tests.system import recording

USER: Final = "nobody"
FLEET: Final = "test"
WAIT_S: Final = 60.0
WATCHDOG_S: Final = 4.0
UNITS: Final = {
    "server": "pollen-server.service",
    "gateway": "pollen-gateway@.service",
    "edge_client": "pollen-edge.service",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def need_namespaces() -> None:
    """Skip the test where this user may not have a file system and a network of its own."""
    if subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a sandbox needs root with the right to make namespaces: sudo pytest tests/deploy")


class Service:
    """One role, started from its settings file in `folder` under its unit file."""

    def __init__(self, role: str, folder: Path, chosen: Any) -> None:
        self.role = role
        self.unit = SYSTEMD / UNITS[role]
        self.file = folder / f"{role}.toml"
        self.file.write_text(settings.to_toml(chosen, show_secrets=True), encoding="utf-8")
        self.file.chmod(0o644)
        self.log = folder / f"{role}.log"
        self.heard: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(folder / f"{role}.notify"))
        self._listener.setblocking(False)
        (folder / f"{role}.notify").chmod(0o777)
        state = folder / role
        state.mkdir()
        shutil.chown(state, USER)
        options = read(self.unit)["Service"]
        environment = dict(pair.split("=", 1) for line in options.get("Environment", []) for pair in shlex.split(line))
        environment |= {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(state),
            "TMPDIR": str(state),
            "NOTIFY_SOCKET": str(folder / f"{role}.notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        command = [sys.executable, "-m", f"{role}.command", "--config", str(self.file)]
        sandbox = [sys.executable, "-m", "tests.deploy.sandbox", str(self.unit), USER, str(state), "--"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", *sandbox, *command], cwd=PROJECT, env=environment, stderr=log, stdout=log
            )

    def said(self) -> list[str]:
        """Everything that systemd would have heard so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self._listener.recv(4096).decode())
        return self.heard

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until `condition` is true; fails when the service ends first, or after a minute."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.role}: {what} is not seen, exit code {self.process.poll()}; its log:\n{self.text}")
            time.sleep(0.02)

    def reload(self) -> None:
        """What `systemctl reload` does."""
        (line,) = read(self.unit)["Service"]["ExecReload"]
        subprocess.run(line.replace("$MAINPID", str(self.process.pid)).split(), check=True)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._listener.close()


class Fleet:
    """A broker and the three services; `services` by role."""

    def __init__(self, binary: Path, bundle: Path) -> None:
        need_namespaces()
        self.folder = Path(tempfile.mkdtemp(prefix="pollen-units-"))
        self.folder.chmod(0o755)
        shutil.copy(bundle, self.folder / "model.bundle")
        (self.folder / "model.bundle").chmod(0o644)
        recording.write(self.folder / "readings.npz", seed=1)
        accounts = [Account("pi-1", "secret-pi-1", "device"), Account("gateway-1", "secret-gateway-1", "gateway")]
        self.broker = Mosquitto(binary, self.folder / "broker", fleet=FLEET, accounts=accounts)
        self.services: dict[str, Service] = {}
        self.http = {role: free_port() for role in ("server", "gateway")}

    def __enter__(self) -> Self:
        self.broker.start()
        port = free_port()
        chosen: dict[str, Any] = {
            "server": ServerSettings(
                fleet=FLEET,
                bundle=self.folder / "model.bundle",
                state_dir=self.folder / "server",
                listen=Listen(port=port),
                merge=Merging("fedasync"),
                task=Tasks(config={"min_samples": 6, "max_steps": 4}),
                publish=Publishing(0.1),
                http=Http(port=self.http["server"]),
            ),
            "gateway": Gateway(
                fleet=FLEET,
                broker=self._account("gateway-1"),
                server=GatewayServer(port=port),
                http=Http(port=self.http["gateway"]),
            ),
            "edge_client": EdgeSettings(
                device="pi-1",
                fleet=FLEET,
                model="telemetry",
                state_dir=self.folder / "edge_client",
                broker=self._account("pi-1"),
                sensor=Sensor(
                    "replay", period_s=0.02, options={"file": str(self.folder / "readings.npz"), "loop": True}
                ),
                learner=Learner(replay_samples=200),
                training=Training(new_samples=6, max_steps=4, fetch_s=0.5),
                upload=Upload(vitals_s=1.0),
            ),
        }
        for role, one in chosen.items():
            self.services[role] = Service(role, self.folder, one)
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services.values():
            service.close()
        self.broker.stop()
        shutil.rmtree(self.folder)

    def _account(self, name: str) -> Broker:
        return Broker(port=self.broker.port, username=name, password=f"secret-{name}")
