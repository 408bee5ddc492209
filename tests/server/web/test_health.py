"""Health and readiness of a real server: of one that stops, whose disk is full, whose merge loop hangs."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gateway_hub import GatewayHub
from server.web.fleet_view import FleetView
from server.web.health import Health
from server.web.metrics import Metrics
from server.web.model_view import ModelView
from tests.server.gateway_client import GatewayClient, bundle, update
from tests.server.web.serving import FLEET, Serving, SimulatedFleet


def test_a_server_that_works_is_healthy_and_ready(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving:
        assert serving.api("/healthz") == {"healthy": True, "problems": []}
        assert serving.api("/readyz") == {"ready": True, "problems": []}


def test_while_it_stops_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    serving = Serving(tmp_path, interval_s=0.1)
    (tmp_path / "heldout_weather.py").write_text("import time\ndef score(version, arrays):\n    time.sleep(3)\n")
    with serving:
        with SimulatedFleet(serving, ["pi-1"]) as fleet:
            fleet.merge("pi-1")  # there is something to evaluate at the end, which takes long
            assert serving.process is not None
            serving.process.send_signal(signal.SIGTERM)
            told = serving.wait_for(
                lambda: (asked := serving.ask("/readyz"))[0] == 503 and json.loads(asked[2]), "it is not ready"
            )
            assert told["problems"][0] == "stopping"
            assert serving.ask("/healthz")[0] == 200
        assert serving.process.wait(60) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a tmpfs: run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, step: int) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(b"x" * step) == step:
            pass


def free_bytes(serving: Serving) -> float:
    lines = serving.ask("/metrics")[2].decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("pollen_server_state_free_bytes ")))


def test_a_full_disk_ends_the_server_and_what_was_told_is_on_the_disk(small_disk: Path) -> None:
    """It fills up while updates come; then there is room again, and the one without a receipt comes once more."""
    with Serving(small_disk) as serving:
        told = 0
        with GatewayClient(serving.port, FLEET) as gateway:
            gateway.birth("pi-1")
            assert 0 < free_bytes(serving) < 4 * 2**20
            for step in (0, 65536, 4096, 512, 512, 512):
                if step:
                    fill(small_disk / "filler", step)
                payload = update(gateway.task("pi-1"), serving.bundle, 0.01, seq=told + 1)
                gateway.upload("pi-1", payload)
                try:
                    assert gateway.receipt("pi-1").outcome == "merged"
                except AssertionError:
                    break
                told += 1
            assert serving.process is not None
            assert serving.process.wait(30) == 1
        assert "check the disk's space and health, then start again" in serving.log.splitlines()[-1]
        assert told >= 1
        (small_disk / "filler").unlink()
        serving.start()
        assert serving.api("/api/devices/pi-1")["updates"] == told
        with GatewayClient(serving.port, FLEET) as gateway:
            gateway.birth("pi-1")
            for _ in range(2):
                gateway.upload("pi-1", payload)
                assert gateway.receipt("pi-1").outcome == "merged"
        assert serving.api("/api/devices/pi-1")["updates"] == told + 1


def test_a_merge_loop_that_fails_or_hangs_is_seen() -> None:
    stop = threading.Event()
    hub = GatewayHub()
    link = hub.add(bundle(), 60.0)
    view = ModelView("small", "fedasync", 5, FleetView(), Metrics().of("small"))
    health = Health([(view, link)], stop, silent_s=0.0)
    assert health.unready() == ["small: not yet published"]
    assert health.ailments() == []
    link.started = True
    view.turned(0)
    view.running = True
    assert "the merge loop has not turned for" in health.ailments()[0]
    view.ended("StoreError: state.sqlite: database or disk is full")
    assert health.ailments() == ["small: StoreError: state.sqlite: database or disk is full"]
    stop.set()
    assert health.unready()[0] == "stopping"
    link.close()
    assert "small: has ended" in health.unready()
