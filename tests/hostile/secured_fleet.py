"""A fleet as an operator runs it: an authority, Mosquitto with client certificates, mutual TLS from gateway to server,
two honest devices that train. Real processes, each with its certificate and nothing else."""

import contextlib
import json
import ssl
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from edge_client.settings import EdgeSettings, Learner, Sensor, Session, Training, Upload
from firmware_scripts.authority.authority import Authority
from gateway.settings import Gateway
from gateway.settings import Limits as GatewayLimits
from gateway.settings import Server as GatewayServer
from pollen import settings
from pollen.broker import Broker
from pollen.demo.processes import Child, Processes
from pollen.http_settings import Http
from pollen.messages import Scalar
from pollen.mosquitto import Account, Mosquitto, Tls
from pollen.service import Logging
from server.bridge_service import Listen
from server.settings import Merging, Publishing, Settings, Tasks, UploadLimits
from tests.system import recording
from tests.system.whole import MODEL, UPDATE_BYTES, free_port, listens

FLEET = "garden"
HOST = "127.0.0.1"
HONEST = ("pi-1", "pi-2")
START_S = 60.0
TASK: Mapping[str, Scalar] = {"learning_rate": 0.05, "epochs": 1, "max_steps": 4, "min_samples": 6}


class SecuredFleet:
    """Everything in `folder`; a context manager. `limits`: of the gateway."""

    def __init__(
        self,
        folder: Path,
        binary: Path,
        bundle: Path,
        *,
        honest: Sequence[str] = HONEST,
        limits: GatewayLimits | None = None,
    ) -> None:
        self.folder = folder
        self.honest = tuple(honest)
        self.authority = Authority.create(folder / "ca", FLEET)
        self.server_port, self.server_http, self.gateway_http = free_port(), free_port(), free_port()
        for name, role in (("broker", "broker"), ("server", "server")):
            self.authority.issue(name, role, hosts=[HOST])  # type: ignore[arg-type]
        self.authority.issue("gateway-1", "gateway")
        self.authority.issue("ops", "observer")
        for name in honest:
            self.authority.issue(name, "device")
        certificate, key = self.pair("broker")
        self.broker = Mosquitto(
            binary,
            folder / "broker",
            fleet=FLEET,
            accounts=[Account("gateway-1", "", "gateway"), Account("ops", "", "observer")],
            tls=Tls(ca=self.authority.ca, certificate=certificate, key=key, crl=self.authority.crl),
        )
        self._bundle = bundle
        self._limits = limits or GatewayLimits(update_bytes=UPDATE_BYTES)
        self._processes = Processes()
        self._running: dict[str, Child] = {}
        (folder / "logs").mkdir()

    def pair(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `name`."""
        return self.authority.ca.parent / "issued" / f"{name}.pem", self.authority.ca.parent / "issued" / f"{name}.key"

    def account(self, name: str) -> Broker:
        """How `name` reaches the broker."""
        certificate, key = self.pair(name)
        port = self.broker.port
        return Broker(HOST, port, ca=self.authority.ca, certificate=certificate, key=key, keepalive_s=10)

    def __enter__(self) -> Self:
        self._processes.__enter__()
        try:
            self.broker.start()
            self._running["broker"] = self._processes.adopt("broker", "broker", self.broker.process, self.broker.log)
            self.start_server()
            self.start_gateway()
            for number, name in enumerate(self.honest):
                self.start_device(name, number)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            for name in self._running:
                print(f"--- {name}")
                with contextlib.suppress(OSError):
                    print("\n".join(self.log(name).splitlines()[-40:]))
        self._processes.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def start_server(self) -> None:
        """Start pollen-server; returns once it listens."""
        certificate, key = self.pair("server")
        listen = Listen(port=self.server_port, ca=self.authority.ca, certificate=certificate, key=key)
        chosen = Settings(
            fleet=FLEET,
            bundle=self._bundle,
            state_dir=self.folder / "server",
            listen=listen,
            merge=Merging("fedasync", {"alpha": 0.3}, sample_weighting="equal"),
            task=Tasks(ttl_s=20.0, config=dict(TASK)),
            publish=Publishing(0.1),
            limits=UploadLimits(UPDATE_BYTES),
            http=Http(port=self.server_http),
        )
        self._start("server", "server", chosen)
        self.wait_for(lambda: listens(self.server_port), START_S, "the server listens")

    def start_gateway(self) -> None:
        """Start pollen-gateway."""
        certificate, key = self.pair("gateway-1")
        chosen = Gateway(
            fleet=FLEET,
            name="gateway-1",
            broker=self.account("gateway-1"),
            server=GatewayServer(HOST, self.server_port, self.authority.ca, certificate, key),
            limits=self._limits,
            http=Http(port=self.gateway_http),
        )
        self._start("gateway-1", "gateway", chosen)

    def start_device(self, name: str, seed: int) -> None:
        """Start the pollen-edge `name`."""
        file = recording.write(self.folder / f"{name}.npz", seed)
        chosen = EdgeSettings(
            device=name,
            fleet=FLEET,
            model=MODEL,
            state_dir=self.folder / name,
            broker=self.account(name),
            sensor=Sensor("replay", period_s=0.02, options={"file": str(file), "loop": True}),
            learner=Learner(replay_samples=200),
            training=Training(new_samples=6, max_steps=4, fetch_s=0.5),
            upload=Upload(retry_s=1.0, drain_s=30.0, vitals_s=1.0),
            session=Session(expiry_s=600, will_delay_s=2, reconnect_min_s=0.1, reconnect_max_s=0.5),
            logging=Logging("info"),
        )
        self._start(name, "edge_client", chosen)

    def _start(self, name: str, package: str, chosen: Any) -> None:
        path = self.folder / f"{name}.toml"
        path.write_text(settings.to_toml(chosen, show_secrets=True), encoding="utf-8")
        command = [sys.executable, "-m", f"{package}.command", "--config", str(path)]
        self._running[name] = self._processes.start(name, package, command, self.folder / "logs" / f"{name}.log")

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The condition's first true value; fails after `seconds`, or when a process ends by itself."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            for name, child in self._running.items():
                assert child.process.poll() is None, f"{name} ended by itself: {child.last_line()}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)
        return value

    def log(self, name: str) -> str:
        """What a process has logged."""
        path = self.broker.log if name == "broker" else self.folder / "logs" / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace")

    def history(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind in history.jsonl."""
        path = self.folder / "server" / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines[: len(lines) or None]) if entry["event"] == event]

    def merges(self) -> Counter[str]:
        """How many updates of each device were merged."""
        return Counter(line["device"] for line in self.history("merge"))

    def wait_for_honest_merges(self, more: int = 3, seconds: float = 40.0) -> None:
        """Until each honest device has had `more` updates merged from now on."""
        before = self.merges()
        self.wait_for(
            lambda: all(self.merges()[name] >= before[name] + more for name in self.honest),
            seconds,
            f"{more} more merges of each of {self.honest}",
        )

    def metric(self, role: str, name: str, **labels: str) -> float:
        """The sum of the samples of a metric whose labels include `labels`, as Prometheus would scrape it now."""
        port = self.server_http if role == "server" else self.gateway_http
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_for_metric(self, role: str, name: str, least: float, **labels: str) -> None:
        """Until `metric` is at least `least`; an answer may be a second old."""
        self.wait_for(lambda: self.metric(role, name, **labels) >= least, 10, f"{name}{labels} is {least} in {role}")

    def context(self, name: str | None) -> ssl.SSLContext:
        """A TLS context that trusts the fleet's authority and shows the certificate of `name`."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        if name is not None:
            context.load_cert_chain(*self.pair(name))
        return context
