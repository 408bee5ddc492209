"""The JSON that a real pollen-server gives of its fleet, behind which are real streams."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pollen.bridge import DeviceVitals
from tests.server.gateway_client import random_task_id
from tests.server.web.serving import FLEET, MODEL, Serving, SimulatedFleet

NAMES = [f"pi-{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("api"), interval_s=0.2) as one:
        yield one


@pytest.fixture(scope="module")
def fleet(serving: Serving) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(serving, NAMES) as one:
        for name in ("pi-1", "pi-1", "pi-2"):
            one.merge(name)
        one.refuse("pi-3")
        one.vitals("pi-1", temperature_celsius=51.5, prequential_error=0.25, baseline_error=0.5)
        serving.wait_for(lambda: serving.api("/api/devices/pi-1")["vitals_at"], "vitals")
        serving.wait_for(lambda: serving.api("/api/devices/pi-3")["rejected"], "the rejection")
        yield one


def test_the_fleet_in_numbers(serving: Serving, fleet: SimulatedFleet) -> None:
    told = serving.wait_for(
        lambda: (
            (read := serving.api("/api/fleet"))["models"][0]["loss"] is not None
            and read["models"][0]["error"] is not None
            and read
        ),
        "an evaluation",
    )
    assert (told["fleet"], told["writable"]) == (FLEET, True)
    assert told["started_at"] < told["now"] <= time.time()
    (model,) = told["models"]
    assert (model["name"], model["rule"], model["version"], model["merges"]) == (MODEL, "fedasync", 3, 3)
    assert (model["parameters"], model["running"]) == (50, True)
    assert 0 < model["merges_per_s"] <= 3
    assert 0 <= model["published_version"] <= 3
    assert "accuracy" in model["metrics"]
    assert (model["error"], model["baseline"]) == (0.25, 0.5)
    assert told["devices"] == {"known": 5, "online": 5, "blocked": 0}
    assert told["updates"] == {"merged": 3, "rejected": 1}
    assert told["rejections"] == {"not-finite": 1}
    (gateway,) = told["gateways"]
    assert (gateway["name"], gateway["software"]) == ("gateway-1", "test")
    assert gateway["peer"].startswith("ipv4:127.0.0.1:")
    assert told["bytes"]["received"] > 500
    assert told["bytes"]["sent"] > 500


def test_the_map_has_every_device_in_the_order_of_names(serving: Serving, fleet: SimulatedFleet) -> None:
    cells = serving.wait_for(
        lambda: (read := serving.api("/api/map")["devices"])[2][4] and read, "a map that shows the rejection"
    )
    assert cells == [
        ["pi-1", 1, 1, 0, 0],
        ["pi-2", 1, 0, 0, 0],
        ["pi-3", 1, None, 0, 1],
        ["pi-4", 1, None, 0, 0],
        ["pi-5", 1, None, 0, 0],
    ]


def test_rows_come_page_by_page(serving: Serving, fleet: SimulatedFleet) -> None:
    first = serving.api("/api/devices?limit=3")
    assert [row["name"] for row in first["devices"]] == ["pi-1", "pi-2", "pi-3"]
    second = serving.api(f"/api/devices?limit=3&after={first['next']}")
    assert [row["name"] for row in second["devices"]] == ["pi-4", "pi-5"]
    assert second["next"] is None
    assert [row["name"] for row in serving.api("/api/devices?q=-4")["devices"]] == ["pi-4"]
    assert serving.api("/api/devices?q=nobody") == {"devices": [], "next": None}


def test_a_row_says_how_a_device_does(serving: Serving, fleet: SimulatedFleet) -> None:
    (row,) = serving.api("/api/devices?limit=1")["devices"]
    assert (row["updates"], row["rejected"], row["behind"], row["online"], row["blocked"]) == (2, 0, 1, True, False)
    assert row["version"] + row["staleness"] == 1  # merged as version 2
    assert (row["models"], row["software"], row["machine"]) == ([MODEL], "0.1.0", "aarch64")
    assert (row["temperature_celsius"], row["error"], row["baseline"]) == (51.5, 0.25, 0.5)
    assert 0 <= time.time() - row["last_seen"] < 120
    assert row["bytes"] > 400


def test_a_devices_page_has_its_history(serving: Serving, fleet: SimulatedFleet) -> None:
    told = serving.api("/api/devices/pi-1")
    assert {len(column) for column in told["history"].values()} == {2}
    assert set(told["history"]) == {"time", "staleness", "weight", "delta_norm", "loss_before", "loss_after"}
    assert set(told["trends"]) == {"time", "error", "baseline", "temperature_celsius"}
    assert told["trends"]["error"] == [0.25]
    assert told["vitals"]["temperature_celsius"] == 51.5
    assert told["birth"]["interpreter"] == "ai-edge-litert 2.3.0"
    (rejection,) = serving.api("/api/devices/pi-3")["rejections"]
    assert rejection["kind"] == "not-finite"
    assert "finite" in rejection["reason"]


def test_what_is_unknown_is_404_and_what_is_no_number_400(serving: Serving, fleet: SimulatedFleet) -> None:
    for path in ("/api/devices/nobody", "/api/models/nothing/evaluations", "/api/nothing", "/devices"):
        status, _, body = serving.ask(path)
        assert (status, list(json.loads(body))) == (404, ["error"])
    for path in ("/api/devices?limit=x", "/api/events?after=-1", "/api/events?after=1e9", "/api/events?limit=%C2%B2"):
        assert serving.ask(path)[0] == 400
    assert len(serving.api("/api/devices?limit=999999999")["devices"]) == 5


def test_curves_of_a_model(serving: Serving, fleet: SimulatedFleet) -> None:
    told = serving.wait_for(
        lambda: (read := serving.api(f"/api/models/{MODEL}/evaluations"))["central"] and read, "an evaluation"
    )
    assert told["central"][-1]["loss"] > 0
    assert told["federated"] == []
    assert len(told["updates"]) >= 1


def test_events_come_once_each(serving: Serving, fleet: SimulatedFleet) -> None:
    told = serving.api("/api/events?limit=200")
    numbers = [event["number"] for event in told["events"]]
    assert numbers == sorted(set(numbers))
    assert told["next"] == numbers[-1]
    kinds = [event["event"] for event in told["events"]]
    assert kinds.count("birth") == 5
    assert kinds.count("merge") == 3
    assert kinds.count("rejection") == 1
    assert {"start", "publication", "gateway", "evaluation"} <= set(kinds)
    newest = serving.api(f"/api/events?after={numbers[-3]}")
    assert [event["number"] for event in newest["events"]][:2] == numbers[-2:]
    assert serving.api("/api/events?after=999999") | {"next": 0} == {"next": 0, "events": []}


def test_metrics_are_what_happened(serving: Serving, fleet: SimulatedFleet) -> None:
    time.sleep(1.1)  # an answer may be a second old
    text = serving.ask("/metrics")[2].decode()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["pollen_server_merges_total", MODEL] == 3
    assert samples["pollen_server_rejections_total", "not-finite", MODEL] == 1
    assert samples["pollen_server_receipts_total", MODEL] == 4
    assert samples["pollen_server_model_version", MODEL] == 3
    assert samples["pollen_server_devices_online",] == 5
    assert samples["pollen_server_gateways_connected",] == 1
    assert samples["pollen_server_state_free_bytes",] > 0
    assert samples["pollen_server_commit_seconds_count", MODEL] >= 3
    assert samples["pollen_server_update_staleness_merges_count", MODEL] == 3
    assert samples["process_resident_memory_bytes",] > 0
    assert not any(name in text for name in NAMES)
    if which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout


def test_a_refusal_of_an_unknown_task_is_counted(serving: Serving, fleet: SimulatedFleet) -> None:
    fleet.wait_for_tasks("pi-5")
    fleet.answer("pi-5", task=random_task_id())
    serving.wait_for(lambda: serving.api("/api/fleet")["rejections"].get("unknown-task"), "the refusal")


def test_hostile_vitals_change_nothing_else(serving: Serving, fleet: SimulatedFleet) -> None:
    odd = {f"<script>{number}\u202e\x1b[2J": 1e300 for number in range(30)}
    fleet.vitals("pi-4", **odd)
    gateway = fleet._gateway
    for payload in (b"", b"\xff" * 100, b"\x00" * 9000, b"\xa1" * 5000):
        gateway.send(DeviceVitals("pi-5", payload))
        gateway.send(DeviceVitals("<b>", payload))
    shown = serving.wait_for(lambda: serving.api("/api/devices/pi-4")["vitals"], "the vitals")
    assert set(odd) <= set(shown)
    assert serving.api("/api/devices/pi-5")["vitals"] == {}
    before = serving.api("/api/devices/pi-2")["updates"]
    fleet.merge("pi-2")
    assert serving.api("/api/devices/pi-2")["updates"] == before + 1


def test_a_death_is_seen(serving: Serving, fleet: SimulatedFleet) -> None:
    fleet.death("pi-5")
    serving.wait_for(lambda: serving.api("/api/devices/pi-5")["online"] is False, "the death")
    fleet.birth("pi-5")
    serving.wait_for(lambda: serving.api("/api/devices/pi-5")["online"] is True, "the birth")


def test_counters_and_curves_outlive_a_restart(tmp_path: Path) -> None:
    with Serving(tmp_path, interval_s=0.2) as serving:
        with SimulatedFleet(serving, ["pi-1"]) as fleet:
            fleet.merge("pi-1")
            fleet.refuse("pi-1")
            serving.wait_for(lambda: serving.api("/api/devices/pi-1")["rejected"], "the rejection")
            serving.wait_for(lambda: serving.api(f"/api/models/{MODEL}/evaluations")["central"], "an evaluation")
        serving.stop()
        serving.start()
        row = serving.api("/api/devices/pi-1")
        assert (row["updates"], row["rejected"], row["online"]) == (1, 1, False)
        assert row["bytes"] > 200
        told = serving.api("/api/fleet")
        assert told["updates"] == {"merged": 1, "rejected": 1}
        assert told["rejections"] == {"not-finite": 1}
        assert told["models"][0]["published_version"] == 1
        curves = serving.api(f"/api/models/{MODEL}/evaluations")
        assert len(curves["central"]) >= 1
        assert len(curves["updates"]) == 1
