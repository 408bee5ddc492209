"""Mosquitto, pollen-gateways and pollen-server as real processes, with simulated devices connected to them.

With `certificates` everything is mutual TLS, each device with a certificate of its own; without, passwords on loopback.
"""

import contextlib
import json
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.roles import PROJECT, free_port, logs, pipes, process
from benchmarks.weights_bundle import bundle_of
from firmware_scripts.authority.authority import Authority, Issued
from gateway.settings import Gateway
from gateway.settings import Server as GatewayServer
from pollen import settings
from pollen.broker import Broker
from pollen.http_settings import Http
from pollen.mosquitto import Account, Limits, Mosquitto, Tls, ensure
from server.bridge_service import Listen
from server.settings import Merging
from server.settings import Settings as ServerSettings

FLEET: Final = "bench"
HOST: Final = "127.0.0.1"
MOST_GATEWAYS: Final = 8
FILES: Final = 16_384
AT_ONCE: Final = 50  # handshakes at the start, which is no storm


def device_names(devices: int) -> list[str]:
    """The devices' names."""
    return [f"sim-{number:05d}" for number in range(devices)]


def raise_file_limit() -> None:
    """Let this process, and those it starts, have a file descriptor for each of thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


class Certificates:
    """An authority of its own in `folder`, and a certificate for everyone; making one takes some milliseconds."""

    def __init__(self, folder: Path, devices: int, others: tuple[str, ...] = ()) -> None:
        started = time.monotonic()
        authority = Authority.create(folder, FLEET)
        self.ca, self.crl = authority.ca, authority.crl
        self._issued = {name: authority.issue(name, "device") for name in (*device_names(devices), *others)}
        for number in range(MOST_GATEWAYS):
            self._issued[gateway_name(number)] = authority.issue(gateway_name(number), "gateway")
        self._issued["server"] = authority.issue("server", "server", hosts=[HOST])
        self._issued["broker"] = authority.issue("broker", "broker", hosts=[HOST])
        self.seconds = time.monotonic() - started

    def of(self, name: str) -> Issued:
        """The files of `name`."""
        return self._issued[name]

    def files(self, name: str) -> dict[str, Path]:
        """What `name` needs for mutual TLS, by the settings' names."""
        issued = self.of(name)
        return {"ca": self.ca, "certificate": issued.certificate, "key": issued.key}


def gateway_name(number: int) -> str:
    """The name of one gateway."""
    return f"gateway-{number}"


@dataclass(kw_only=True)
class Deployment:
    """What to start. `processes`: over how many the devices are spread; `others`: names of clients that log in beside
    them, with the password `password`; `fetches`: whether a device gets the newest weights before each update;
    `http`: whether server and gateways serve HTTP; `gateway_limits`: the gateways' `[limits]`."""

    devices: int
    kilobytes: int = 100
    gateways: int = 1
    rule: str = "delta"
    certificates: Certificates | None = None
    processes: int = 2
    others: tuple[str, ...] = ()
    fetches: bool = False
    http: bool = False
    gateway_limits: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def started(self) -> Iterator["Running"]:
        """Run everything, devices not yet connected; stopped at the end."""
        raise_file_limit()
        with tempfile.TemporaryDirectory(prefix="pollen-bench-") as name, contextlib.ExitStack() as stack:
            running = Running(self, Path(name), stack)
            try:
                yield running
            except Exception:
                print(logs(Path(name)), file=sys.stderr)
                raise


class Running:
    """The started roles: `roles` by name, for their CPU and memory, and the devices, which `ask` commands."""

    def __init__(self, deployment: Deployment, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.password = secrets.token_urlsafe(16)
        self.roles: dict[str, psutil.Process] = {}
        self.http_ports: list[int] = []
        self._deployment = deployment
        self._stack = stack
        self._bundle = folder / "bench.bundle"
        bundle_of(deployment.kilobytes).write(self._bundle)
        self.broker = self._start_broker()
        self.server_port = free_port()
        self._start("server", "server", self._server_settings())
        for number in range(deployment.gateways):
            self._start(gateway_name(number), "gateway", self._gateway_settings(gateway_name(number)))
        self._devices = [self._start_devices(number) for number in range(deployment.processes)]

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Give all devices' processes one command of `benchmarks.simulated_devices`; their answers, when it is done."""
        self.tell(do, **arguments)
        return self.answers()

    def tell(self, do: str, **arguments: Any) -> None:
        """Give the command, and leave the `answers` for later."""
        line = json.dumps({"do": do} | arguments) + "\n"
        for child in self._devices:
            commands, _ = pipes(child)
            commands.write(line)
            commands.flush()

    def answers(self) -> list[dict[str, Any]]:
        """Wait for the answers to the last command."""
        return [self._answer(child) for child in self._devices]

    def count(self) -> tuple[Counter[str], list[float]]:
        """What happened since the last call, and the times from publish to receipt in milliseconds."""
        counts: Counter[str] = Counter()
        waits: list[float] = []
        for answer in self.ask("count"):
            counts.update(answer["counts"])
            waits += answer["waits_ms"]
        return counts, waits

    def set_pace(self, per_s: float | None) -> None:
        """How many updates a second all devices together make; None: as many as they can, 0: none."""
        self.ask("pace", per_s=None if per_s is None else per_s / len(self._devices))

    def set_vitals(self, per_s: float) -> None:
        """How many messages of vitals a second all devices together send."""
        self.ask("vitals", per_s=per_s / len(self._devices))

    def connect(self) -> float:
        """Connect all devices; returns the seconds that took."""
        return max(float(answer["seconds"]) for answer in self.ask("connect", at_once=AT_ONCE))

    def restart_broker(self) -> None:
        """Start the broker, after `broker.kill()`, on its port."""
        self.broker.start()
        self.roles["broker"] = psutil.Process(self.broker.process.pid)

    def _answer(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        line = pipes(child)[1].readline()
        if not line:
            raise SystemExit(f"error: the simulated devices ended\n{logs(self.folder)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start_broker(self) -> Mosquitto:
        deployment = self._deployment
        names = [*device_names(deployment.devices), *deployment.others]
        gateways = [gateway_name(number) for number in range(deployment.gateways + 1)]  # one for the yardstick
        tls, password = None, self.password
        if (certificates := deployment.certificates) is not None:
            tls, password = Tls(**certificates.files("broker"), crl=certificates.crl), ""
        accounts = [Account(name, password, "device") for name in names]
        accounts += [Account(name, password, "gateway") for name in gateways]
        if tls is None:
            accounts.append(Account("observer", password, "observer"))
        binary = ensure(PROJECT / ".cache" / "pollen", print)
        # As large a message as `pollen broker-config` allows, gateways and server taking no larger one.
        limits = Limits(message_bytes=16 * 1024**2)
        broker = Mosquitto(binary, self.folder / "broker", fleet=FLEET, accounts=accounts, tls=tls, limits=limits)
        self._stack.enter_context(broker)
        self.roles["broker"] = psutil.Process(broker.process.pid)
        return broker

    def _server_settings(self) -> ServerSettings:
        deployment = self._deployment
        files = {} if deployment.certificates is None else deployment.certificates.files("server")
        return ServerSettings(
            fleet=FLEET,
            bundle=self._bundle,
            state_dir=self.folder / "state",
            listen=Listen(HOST, self.server_port, **files),
            merge=Merging(deployment.rule),
            http=self._http(),
        )

    def _gateway_settings(self, name: str) -> Gateway:
        deployment = self._deployment
        files: dict[str, Any] = {}
        password, username = self.password, name
        if deployment.certificates is not None:
            files, password, username = deployment.certificates.files(name), "", ""
        plain = Gateway(fleet=FLEET)
        return Gateway(
            fleet=FLEET,
            name=name,
            broker=Broker(port=self.broker.port, username=username, password=password, **files),
            server=GatewayServer(HOST, self.server_port, **files),
            limits=type(plain.limits)(**deployment.gateway_limits),
            http=self._http(),
        )

    def _http(self) -> Http:
        if not self._deployment.http:
            return Http()
        self.http_ports.append(free_port())
        return Http(port=self.http_ports[-1])

    def _start(self, name: str, module: str, chosen: Any) -> None:
        file = self.folder / f"{name}.toml"
        file.write_text(settings.to_toml(chosen, show_secrets=True), encoding="utf-8")
        child = self._stack.enter_context(process(self.folder, name, "-m", f"{module}.command", "--config", str(file)))
        self.roles[name] = psutil.Process(child.pid)

    def _start_devices(self, number: int) -> subprocess.Popen[str]:
        deployment = self._deployment
        names = device_names(deployment.devices)[number :: deployment.processes]
        files = {} if (made := deployment.certificates) is None else {name: made.files(name) for name in names}
        told = {
            "fleet": FLEET,
            "port": self.broker.port,
            "bundle": str(self._bundle),
            "fetches": deployment.fetches,
            "devices": [
                {
                    "name": name,
                    "password": "" if made else self.password,
                    "tls": {key: str(value) for key, value in files[name].items()} if made else None,
                }
                for name in names
            ],
        }
        file = self.folder / f"devices-{number}.json"
        file.write_text(json.dumps(told))
        child = self._stack.enter_context(
            process(self.folder, f"devices-{number}", "-m", "benchmarks.simulated_devices", str(file))
        )
        self.roles[f"devices-{number}"] = psutil.Process(child.pid)
        return child
