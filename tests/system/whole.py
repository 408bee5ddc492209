"""The real whole in one folder: Mosquitto, pollen-server, pollen-gateway and pollen-edge as processes of their own.

Each can be killed with SIGKILL and started again on its port and its state. Whatever happens to the test, nothing of
it stays: the processes hang on `pollen.demo.processes`, whose guard ends them even when pytest is killed.
"""

import contextlib
import json
import signal
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from edge_client.settings import EdgeSettings, Learner, Sensor, Session, Training, Upload
from gateway.settings import Gateway
from gateway.settings import Limits as GatewayLimits
from gateway.settings import Server as GatewayServer
from pollen import settings
from pollen.broker import Broker
from pollen.demo.processes import Child, Processes
from pollen.messages import Scalar
from pollen.mosquitto import Account, Mosquitto
from pollen.service import Logging
from server.bridge_service import Listen
from server.settings import Evaluation, Merging, Publishing, Tasks, UploadLimits
from server.settings import Settings as ServerSettings
from tests.system import recording
from tests.system.observer import Observer

FLEET = "test"
MODEL = "telemetry"
HOST = "127.0.0.1"
START_S = 40.0
STOP_S = 45.0
UPDATE_BYTES = 100_000
# Small work, often: what a kill meets must be in motion.
TASK: Mapping[str, Scalar] = {"learning_rate": 0.05, "epochs": 1, "max_steps": 4, "min_samples": 6}


class Whole:
    """Everything, in `folder`. `devices`: names of the pollen-edge processes; `others`: accounts for clients of a test;
    `gateways`: the first of them is started with the rest.

    With `server` False there is no pollen-server: the test listens at `server_port` itself.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path,
        bundle: Path,
        *,
        devices: tuple[str, ...],
        others: tuple[str, ...] = (),
        gateways: tuple[str, ...] = ("gateway-1",),
        server: bool = True,
        server_port: int | None = None,
        server_changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.bundle = bundle
        self.devices = devices
        self.gateways = gateways
        self.server_port = server_port or free_port()
        self._with_server = server
        self._server_changes = server_changes or {}
        accounts = [Account(name, f"secret-{name}", "device") for name in (*devices, *others)]
        accounts += [Account(name, f"secret-{name}", "gateway") for name in gateways]
        accounts += [Account("observer", "secret-observer", "observer")]
        self.broker = Mosquitto(binary, folder / "broker", fleet=FLEET, accounts=accounts)
        self._processes = Processes()
        self._running: dict[str, Child] = {}
        self._device_ports: dict[str, int] = {}
        self.observer: Observer | None = None
        (folder / "logs").mkdir(parents=True)

    # --- start and stop

    def __enter__(self) -> Self:
        self._processes.__enter__()
        try:
            self.start_broker()
            self.observer = Observer(self.broker.port, FLEET)
            if self._with_server:
                self.start_server()
            self.start_gateway()
            self.start_devices()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.show_logs()
        if self.observer is not None:
            self.observer.close()
        self._processes.__exit__(kind, error, trace)

    def start_broker(self) -> None:
        """Start Mosquitto, or start it again on its port."""
        self.broker.start()
        self._running["broker"] = self._processes.adopt("broker", "broker", self.broker.process, self.broker.log)

    def start_server(self, *, wait: bool = True) -> None:
        """Start pollen-server and, unless told not to, wait until it listens."""
        options: dict[str, Any] = {
            "fleet": FLEET,
            "bundle": self.bundle,
            "state_dir": self.folder / "server",
            "listen": Listen(port=self.server_port),
            "merge": Merging("fedasync", {"alpha": 0.3}, sample_weighting="equal"),
            "task": Tasks(ttl_s=20.0, config=dict(TASK)),
            "publish": Publishing(0.1),
            "evaluation": Evaluation(interval_s=1.0),
            "limits": UploadLimits(UPDATE_BYTES),
        }
        self._start("server", "server", ServerSettings(**(options | dict(self._server_changes))))
        if wait:
            self.wait_for(lambda: listens(self.server_port), START_S, "the server listens")

    def start_gateway(self, name: str = "") -> None:
        """Start the pollen-gateway `name`, the first unless given; it finds broker and server by itself."""
        name = name or self.gateways[0]
        self._start(name, "gateway", self.gateway_settings(name))

    def gateway_settings(self, name: str) -> Gateway:
        """What the gateway `name` is started with."""
        return Gateway(
            fleet=FLEET,
            name=name,
            broker=self._account(name),
            server=GatewayServer(port=self.server_port),
            limits=GatewayLimits(update_bytes=UPDATE_BYTES),
        )

    def start_devices(self) -> None:
        """Start all devices."""
        for name in self.devices:
            self.start_device(name)

    def start_device(self, name: str, *, port: int | None = None) -> None:
        """Start the pollen-edge `name`, or start it again; `port`: of the broker, where it reaches it elsewhere."""
        self._device_ports[name] = port or self._device_ports.get(name, self.broker.port)
        self._start(name, "device", self.device_settings(name))

    def device_settings(self, name: str) -> EdgeSettings:
        """What the device `name` is started with."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            recording.write(file, seed=len(self._device_ports))
        return EdgeSettings(
            device=name,
            fleet=FLEET,
            model=MODEL,
            state_dir=self.folder / name,
            broker=self._account(name, self._device_ports[name]),
            sensor=Sensor("replay", period_s=0.01, options={"file": str(file), "loop": True}),
            learner=Learner(replay_samples=200),
            training=Training(new_samples=6, max_steps=4, fetch_s=0.5),
            upload=Upload(retry_s=1.0, drain_s=30.0, vitals_s=1.0),
            session=Session(expiry_s=600, will_delay_s=2, reconnect_min_s=0.1, reconnect_max_s=0.5),
            logging=Logging("debug"),
        )

    def kill(self, name: str) -> None:
        """SIGKILL the process `name` ("broker", "server", a gateway or a device) by its PID."""
        child = self._running[name]
        assert child.process.poll() is None, f"{name} had ended by itself"
        child.stopped = True
        child.process.kill()
        child.process.wait()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process `name`."""
        self._running[name].process.send_signal(number)

    def restart(self, name: str) -> None:
        """Start a process again that was killed."""
        starters: dict[str, Callable[[], None]] = {"broker": self.start_broker, "server": self.start_server}
        start = self.start_gateway if name in self.gateways else self.start_device
        starters.get(name, lambda: start(name))()

    def stop(self, *names: str) -> None:
        """SIGTERM to all of `names`, then wait: each must end with exit code 0."""
        for name in names:
            self._running[name].stopped = True
            self._running[name].process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for name in names:
            code = self._running[name].process.wait(max(0.1, deadline - time.monotonic()))
            assert code == 0, f"{name} ended with {code} on SIGTERM"

    def check_alive(self) -> None:
        """Fail when a process ended that nobody stopped."""
        for name, child in self._running.items():
            code = child.process.poll()
            assert code is None or child.stopped, f"{name} ended by itself with {code}: {child.last_line()}"

    def _start(self, name: str, role: Any, chosen: Any) -> None:
        path = self.folder / f"{name}.toml"
        path.write_text(settings.to_toml(chosen, show_secrets=True), encoding="utf-8")
        module = {"server": "server", "gateway": "gateway", "device": "edge_client"}[role]
        command = [*self.before(name), sys.executable, "-m", f"{module}.command", "--config", str(path)]
        self._running[name] = self._processes.start(name, role, command, self.log(name))

    def before(self, name: str) -> list[str]:  # noqa: ARG002 - others put `name` elsewhere
        """What comes before the command line of the process `name`; it must end in an exec of the rest."""
        return []

    def _account(self, name: str, port: int | None = None) -> Broker:
        return Broker(port=port or self.broker.port, username=name, password=f"secret-{name}", keepalive_s=10)

    # --- what it looks like from outside

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The condition's first true value; fails after `seconds`, or when a process ends by itself."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            self.check_alive()
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.01)

    def version(self) -> int:
        """The committed model version in the server's state store; 0 before there is one."""
        try:
            (found,) = read(self.folder / "server" / "state.sqlite", "SELECT version FROM model")
        except (ValueError, sqlite3.Error):
            return 0
        return int(found[0])

    def history(self, event: str = "merge") -> list[dict[str, Any]]:
        """The lines of one kind in history.jsonl, oldest first; a line cut off by a kill is left out."""
        path = self.folder / "server" / "history.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if entry["event"] == event:
                    found.append(entry)
        return found

    def wait_for_merges(self, more: int, seconds: float = 30.0) -> None:
        """Wait until `more` merges have been committed from now on, and everyone has a part in it."""
        before = Counter(merge["device"] for merge in self.history())
        target = self.version() + more
        running = [name for name in self.devices if self._running[name].process.poll() is None]

        def done() -> bool:
            now = Counter(merge["device"] for merge in self.history())
            return self.version() >= target and all(now[name] > before[name] for name in running)

        self.wait_for(done, seconds, f"{more} more merges, of every one of {running}, from version {target - more}")

    def in_flight(self, *devices: str) -> int:
        """How many updates were handed to MQTT and have no answer in the server's store now.

        The devices' outboxes come first: they forget a receipt's row a little later.
        """
        handed: set[bytes] = set()
        for name in devices or self.devices:
            with contextlib.suppress(sqlite3.Error, ValueError):
                rows = read(self.folder / name / "outbox.sqlite", "SELECT task FROM reply WHERE handed = 1")
                handed.update(task for (task,) in rows)
        answered = read(self.folder / "server" / "state.sqlite", "SELECT task FROM answered")
        return len(handed - {task for (task,) in answered})

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self.broker.log if name == "broker" else self.folder / "logs" / f"{name}.log"

    def show_logs(self, lines: int = 60) -> None:
        """Print the end of every log; pytest shows it with the failure."""
        for name in self._running:
            print(f"--- {name}")
            with contextlib.suppress(OSError):
                print("\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:]))


def read(path: Path, query: str) -> list[tuple[Any, ...]]:
    """The rows of `query` on a database that another process may be using. ValueError when there is no file yet."""
    if not path.exists():
        raise ValueError(f"{path} is not there yet")
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def listens(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
        return True
    return False


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def log_lines(path: Path) -> Iterator[str]:
    """A log's lines."""
    yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
