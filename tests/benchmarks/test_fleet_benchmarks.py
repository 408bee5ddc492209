"""The benchmarks of a whole fleet, in a tiny size: they run, and what they print and write is complete."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sizing

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def run(file: Path, module: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What `python -m benchmarks.<module>` prints, and the JSON that it writes to `file`."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(file)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_updates_are_measured_plain_and_with_tls_and_give_the_costs_for_sizing(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    printed, told = run(
        file, "gateways", "--devices", "8", "--kilobytes", "10", "--seconds", "0.5", "--rounds", "1", "--quick"
    )
    assert set(told["runs"]) == {"plain, 1 gateway(s)", "TLS, 1 gateway(s)"}
    for (one,) in told["runs"].values():
        assert one["per_s"] > 0
        assert one["half_per_s"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert all(one["cpu_ms"][role] > 0 for role in ("gateway", "server", "devices"))
        assert one["rss_mb"]["gateway"] > 10
    assert "bare MQTT" in printed
    assert printed.count("goal") == 4
    for tls in (False, True):
        assert sizing.read(file, tls=tls).update_kb == 10


def test_everyone_is_merged_after_a_power_cut_and_a_killed_broker(tmp_path: Path) -> None:
    sizes = ("--devices", "6", "--kilobytes", "10", "--outage", "0.2", "--no-tls")
    printed, told = run(tmp_path / "storm.json", "reconnect_storm", *sizes)
    assert set(told) == {"power cut, plain, round 1", "broker killed, plain, round 1"}
    for storm in told.values():
        assert storm["counts"]["merged"] + storm["counts"].get("duplicate", 0) == 6
        assert storm["subscribed_s"] > 0
        assert storm["whole_s"] > 0
    assert "power cut" in printed


def test_honest_devices_are_measured_while_another_floods_or_dawdles(tmp_path: Path) -> None:
    attacks = ("flood-small", "loris-grpc")
    sizes = ("--devices", "4", "--per-s", "20", "--seconds", "1")
    printed, told = run(tmp_path / "hostile.json", "hostile_load", *sizes, "--attacks", *attacks)
    assert set(told) == set(attacks)
    for attack in told.values():
        assert attack["attack"]["sent"] > 0
        assert attack["before"]["per_s"] > 0
        assert attack["after"]["per_s"] > 0
    assert "largest ratio" in printed


@pytest.mark.slow
def test_the_superlink_does_the_same_work(tmp_path: Path) -> None:
    printed, told = run(tmp_path / "superlink.json", "superlink", "--nodes", "1", "--seconds", "5")
    assert told["superlink"]["per_s"] > 0
    assert told["superlink"]["node_mb"] > 10
    assert len(told["pollen"]) == 2
    assert "one SuperNode" in printed


def test_sizing_follows_its_formulas() -> None:
    costs = sizing.Costs(
        {"broker": 1.0, "gateway": 2.0, "server": 4.0}, {"broker": 0.1, "gateway": 0.2, "server": 0.4}, 10.0, 2.0
    )
    load = sizing.Load(devices=86_400, updates=100.0, vitals_s=864.0)
    found = sizing.size(load, costs)
    assert found.updates_per_s == pytest.approx(300)
    assert found.vitals_per_s == pytest.approx(100)
    assert found.broker_cores == pytest.approx(0.31)
    assert found.server_cores == pytest.approx(1.24)
    assert found.gateways == 2  # 0.62 cores
    assert found.broker_gb == pytest.approx(0.864)
    assert found.up_mbit == pytest.approx(240)
    assert found.storm_s == pytest.approx(172.8)
    # 600 ms of a second less 40 for vitals, 4 ms each: 140 updates/s in the busiest hour.
    assert sizing.most_updates(load, costs) == pytest.approx(140 / 3)
