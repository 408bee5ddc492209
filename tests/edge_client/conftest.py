"""Fixtures of the device tests: compiled models, and a fleet of real processes on a real broker."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pollen.bundle import Bundle
from tests import tflite
from tests.edge_client.fleet import Device, Server, write_settings

PROJECT = Path(__file__).parents[2]
COMPILE = Path(__file__).with_name("bundles.py")
ACCOUNTS = ("pi-1", "pi-2")


@pytest.fixture(scope="session")
def bundles() -> Callable[[str], Bundle]:
    """`bundles(name)`: a model of bundles.py. Compiled once in the environment that has TensorFlow, then kept."""
    sources = [COMPILE, *sorted((PROJECT / "pollen" / "compiler").rglob("*.py"))]
    sources += [PROJECT / "pollen" / name for name in ("bundle.py", "manifest.py", "objective.py")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = Path(os.environ.get("POLLEN_TEST_BUNDLES", PROJECT / ".cache" / "test-bundles")) / key
    if not (folder / "complete").exists():
        assert importlib.util.find_spec("tensorflow"), f"{folder} lacks models: run these tests with TensorFlow first"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(COMPILE), str(folder)], check=True, timeout=170, env=_environment())
        (folder / "complete").touch()
    return lambda name: Bundle.read(folder / f"{name}.bundle")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PROJECT)}


@pytest.fixture(params=["litert", "tflite"])
def device_python(request: pytest.FixtureRequest) -> str:
    """The Python that runs the device: this one, then the one with tflite-runtime and numpy 1."""
    if request.param == "litert":
        if importlib.util.find_spec("ai_edge_litert") is None:
            pytest.skip("these tests run under tflite-runtime alone here")
        return sys.executable
    if importlib.util.find_spec("tflite_runtime") is not None:
        return sys.executable
    return tflite.python()


@pytest.fixture
def server(broker) -> Iterator[Server]:  # type: ignore[no-untyped-def]
    """A broker, and a client on it that speaks as the server does: tasks, receipts, models."""
    from pollen.mosquitto import Account

    accounts = [Account(name, f"secret-{name}", "device") for name in ACCOUNTS]
    started = broker([*accounts, Account("gateway-1", "secret-gateway", "gateway")])
    client = Server(started)
    yield client
    client.close()


@pytest.fixture
def device(server: Server, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Starts `pollen-edge` processes: `device(python=…, sensor={…}, upload={…}, …)`."""
    started: list[Device] = []

    def start(*, python: str = sys.executable, name: str = "pi-1", wait: bool = True, **tables: object) -> Device:
        settings = write_settings(tmp_path / name, name, server.port, tables)
        one = Device(python, settings, _environment())
        started.append(one)
        if wait:
            server.wait_for(lambda: server.online(name), 40, f"birth of {name}; log:\n{one.log()}")
        return one

    yield start
    for one in started:
        one.kill()
