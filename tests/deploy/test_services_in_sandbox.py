"""Server, gateway and device under their unit files' user, mounts and filters, with systemd's notification socket."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.conftest import Tool
from tests.deploy.metric_names import needed
from tests.deploy.services import UNITS, USER, Fleet, Service, need_namespaces
from tests.deploy.unit_files import PROJECT, SYSTEMD, one

ROLES = tuple(UNITS)


@pytest.fixture(autouse=True)
def programs(tool: Tool) -> None:
    for name, package in (("setpriv", "util-linux"), ("unshare", "util-linux"), ("systemd-analyze", "systemd")):
        tool(name, package)


def ready(fleet: Fleet, role: str) -> Service:
    """The service, once it has said that it is ready."""
    service = fleet.services[role]
    service.wait_for(lambda: "READY=1" in service.said(), "READY=1")
    return service


@pytest.mark.parametrize("role", ROLES)
def test_a_service_tells_systemd_that_it_is_ready_and_alive(fleet: Fleet, role: str) -> None:
    service = ready(fleet, role)
    alive = service.said().count("WATCHDOG=1")
    service.wait_for(lambda: service.said().count("WATCHDOG=1") >= alive + 2, "WATCHDOG=1 twice more")


def test_a_fleet_in_sandboxes_trains_and_merges(fleet: Fleet) -> None:
    server = fleet.services["server"]
    history = fleet.folder / "server" / "history.jsonl"

    def merges() -> int:
        lines = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
        return [json.loads(line)["event"] for line in lines].count("merge")

    server.wait_for(lambda: merges() >= 3, "three merges")


@pytest.mark.parametrize("role", ROLES)
def test_a_service_runs_unprivileged_behind_filters(fleet: Fleet, role: str) -> None:
    service = ready(fleet, role)
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert "0" not in fields["Uid"]
    assert set(fields["CapEff"] + fields["CapBnd"]) == {"0000000000000000"}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == (["1"], ["2"])


def test_services_export_every_metric_that_rules_and_dashboards_ask_for(fleet: Fleet) -> None:
    there: set[str] = set()
    for role, port in fleet.http.items():
        ready(fleet, role)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        there |= {sample.name for family in families for sample in family.samples}
        # Of a metric whose labels have no values yet, only the name is there.
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        there |= {family.name + ending for family in families for ending in endings.get(family.type, ("",))}
    assert needed() - there == set()


@pytest.mark.parametrize("role", ROLES)
def test_a_reload_takes_over_new_settings(fleet: Fleet, role: str) -> None:
    service = ready(fleet, role)
    text = service.file.read_text(encoding="utf-8")
    service.file.write_text(text.replace('level = "info"', 'level = "debug"'), encoding="utf-8")
    service.reload()
    service.wait_for(lambda: "settings reloaded: logging.level" in service.text, "the reload")


@pytest.mark.parametrize("role", ["edge_client", "gateway", "server"])
def test_a_stop_ends_with_0_within_the_units_time(fleet: Fleet, role: str) -> None:
    service = ready(fleet, role)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(float(one(SYSTEMD / UNITS[role], "TimeoutStopSec"))) == 0, service.text
    assert "STOPPING=1" in service.said()


PROBE = """
import json, os, socket, time
from edge_client.clock import kernel_synchronised

def forbidden(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

lower = os.getpriority(os.PRIO_PROCESS, 0) + 1
print(json.dumps({
    "asks the clock": kernel_synchronised() is not None,
    "sets the clock": not forbidden(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
    "lowers its priority": not forbidden(lambda: os.setpriority(os.PRIO_PROCESS, 0, lower)),
    "writes elsewhere": not forbidden(lambda: open("/var/tmp/pollen-probe", "w")),
    "sends raw packets": not forbidden(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
}))
"""


def test_a_device_may_ask_the_clock_and_not_set_it(tool: Tool, tmp_path: Path) -> None:
    need_namespaces()
    unit = str(SYSTEMD / UNITS["edge_client"])
    sandbox = [sys.executable, "-m", "tests.deploy.sandbox", unit, USER, "--"]
    done = subprocess.run(
        ["unshare", "--mount", *sandbox, sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert json.loads(done.stdout) == {
        "asks the clock": True,
        "sets the clock": False,
        "lowers its priority": True,
        "writes elsewhere": False,
        "sends raw packets": False,
    }
