"""`pollen-edge status` and `predict`, asked of a real agent that learns from a real broker."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_client.local.status import render
from pollen.bundle import Bundle
from pollen.errors import SettingsError
from tests.edge_client.fleet import Device, Server, loaded, write_settings

PROJECT = Path(__file__).parents[3]


def pollen_edge(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_client.command", words[0], "--config", str(device.settings_file), *words[1:]],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


def status(device: Device) -> dict[str, Any]:
    done = pollen_edge(device, "status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_status_tells_what_is_learned_and_what_it_waits_for(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle]
) -> None:
    one = device()
    before = status(one)
    assert before["model"]["digest"] == ""
    assert "no task from the server" in before["training"]["waiting_for"]
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    task = server.task(bundle)
    server.receipt(server.update(task))
    after = server.wait_for(lambda: (found := status(one))["last_merge"] and found, 30, "the merge in the status")
    assert after["model"]["digest"] == bundle.digest.hex()
    assert after["last_merge"]["version"] == 1
    assert after["connection"]["connected"]
    assert after["learner"]["examples"] > 0
    assert after["error"]["now"][0] is not None
    shown = pollen_edge(one, "status")
    assert shown.returncode == 0
    assert "staleness 0" in shown.stdout
    assert "now " in shown.stdout


def test_predict_prints_one_line_of_json_a_window(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle]
) -> None:
    one = device()
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    server.update(server.task(bundle))
    done = pollen_edge(one, "predict", "--count", "25")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["window"] for line in found] == list(range(found[0]["window"], found[0]["window"] + 25))
    assert all(len(line["values"]) == 2 for line in found)
    assert found[-1]["error"] is not None


def test_a_reader_that_leaves_ends_predict_quietly(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle]
) -> None:
    one = device()
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    server.update(server.task(bundle))
    command = f"{sys.executable} -m edge_client.command predict --config {one.settings_file} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert "window" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("words", ["status", "status --json", "predict --count 3", "doctor"])
def test_a_reader_that_has_gone_is_no_failure(
    words: str, server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle]
) -> None:
    one = device()
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    server.update(server.task(bundle))
    command = (
        f"{sys.executable} -m edge_client.command {words} --config {one.settings_file} | true; echo ${{PIPESTATUS[0]}}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False,
        env=environment | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_predict_that_gets_fewer_than_it_was_to_count_fails(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle]
) -> None:
    one = device()
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    server.update(server.task(bundle))
    command = [sys.executable, "-m", "edge_client.command", "predict", "--config", str(one.settings_file)]
    with subprocess.Popen(
        [*command, "--count", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline()
        assert one.terminate() == 0
        _, errors = reader.communicate(timeout=60)
    assert reader.returncode == 1
    assert "the agent stopped" in errors


def test_without_an_agent_status_says_so(server: Server, device: Callable[..., Device]) -> None:
    one = device()
    assert one.terminate() == 0
    done = pollen_edge(one, "status")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no pollen-edge runs there" in done.stderr


def test_a_second_agent_in_the_same_folder_is_refused(server: Server, device: Callable[..., Device]) -> None:
    one = device()
    done = subprocess.run(
        [sys.executable, "-m", "edge_client.command", "--config", str(one.settings_file)],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "another pollen-edge" in done.stderr
    assert status(one)["running_s"] > 0


def test_a_fresh_agent_can_be_shown_too() -> None:
    nothing = [None, None]
    text = render(
        {
            "device": "pi-1", "fleet": "f", "running_s": 3.0, "clock_synchronised": None,
            "sensor": {"kind": "bme280", "channels": [], "samples": 0, "faults": 0, "silent_s": None},
            "model": {"name": "m", "digest": "", "version": None, "runtime": ""},
            "learner": {"target": "next", "horizon": 1, "examples": 0, "drifts": 0, "drift_ago_s": None},
            "error": {"now": nothing, "today": nothing, "yesterday": nothing},
            "training": {"waiting_for": "no task from the server", "updates": 0, "own": 0},
            "last_merge": None,
            "connection": {"broker": "b:1", "connected": False, "problem": "refused", "waiting": 0, "held": ""},
            "problems": ["the sensor is not open; see the log"],
        }
    )  # fmt: skip
    assert "bme280: not open" in text
    assert "no window has been scored yet" in text
    assert "not connected to b:1 (refused); no update waiting" in text
    assert text.splitlines()[-1].startswith("problem")


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"predictions": {"publish": "anomalies"}}, "needs anomaly.enabled = true"),
        ({"predictions": {"discovery": "homeassistant"}}, "predictions.discovery announces"),
        ({"predictions": {"publish": "always", "topic": "a/#"}}, "without + and #"),
    ],
)
def test_predictions_that_could_never_be_sent_are_refused(tables: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(complaint)):
        loaded(write_settings(tmp_path / "pi-1", "pi-1", 1883, tables))
