"""The dashboards: what Grafana needs to show them, queries that Prometheus can read, nothing from elsewhere."""

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import Tool
from tests.deploy.metric_names import DASHBOARDS, RULES, in_expression, needed, queries, recorded
from tests.deploy.unit_files import PROJECT

GRAFANA = PROJECT / "deploy" / "grafana"
WIDTH = 24
PANELS = {"stat", "timeseries", "bargauge"}
UNITS = {"short", "none", "ops", "percentunit", "bytes", "Bps", "s"}
board = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@board
def test_a_dashboard_has_what_grafana_asks_for(path: Path) -> None:
    shown = read(path)
    assert shown["uid"] == path.stem
    assert len(shown["uid"]) <= 40
    assert shown["title"]
    assert shown["schemaVersion"] >= 36  # data sources are objects since then
    assert "id" not in shown  # provisioning gives one
    assert shown["panels"]
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in shown["panels"]:
        assert panel["type"] in PANELS
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


@board
def test_panels_lie_within_the_screen_and_beside_each_other(path: Path) -> None:
    places = [panel["gridPos"] for panel in read(path)["panels"]]
    for place in places:
        assert 0 <= place["x"] <= place["x"] + place["w"] <= WIDTH
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"{one} and {other} overlap"


@board
def test_the_data_source_is_a_variable_everywhere(path: Path) -> None:
    shown = read(path)
    (variable,) = [one for one in shown["templating"]["list"] if one["type"] == "datasource"]
    assert variable["query"] == "prometheus"
    asked = [item for panel in shown["panels"] for item in (panel, *panel["targets"])]
    asked += [one for one in shown["templating"]["list"] if one["type"] == "query"]
    assert {(item["datasource"]["type"], item["datasource"]["uid"]) for item in asked} == {
        ("prometheus", f"${{{variable['name']}}}")
    }


@board
def test_a_dashboard_uses_only_variables_it_has_and_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert read(path)["links"] == []
    names = {one["name"] for one in read(path)["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w*)", " ".join(queries(path)))) <= names
    for one in read(path)["templating"]["list"]:
        assert one["type"] == "datasource" or f'"${one["name"]}"' in " ".join(queries(path)), f"{one['name']}: unused"


@board
def test_prometheus_can_read_every_query(path: Path, tool: Tool, tmp_path: Path) -> None:
    asked = [query.replace("$model", ".*").replace("$instance", ".*") for query in queries(path)]
    made = [
        {"record": f"query:{number}", "expr": query}
        for number, query in enumerate(asked)
        if not query.startswith("label_values(")
    ]
    assert len(made) > 10
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": made}]}), encoding="utf-8")
    checked = subprocess.run(
        [tool("promtool", "prometheus"), "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_dashboards_ask_for_recorded_series_that_are_recorded() -> None:
    asked = set().union(*(in_expression(query) for path in DASHBOARDS for query in queries(path)))
    assert {name for name in asked if ":" in name} <= recorded()
    assert "pollen_server_devices_online" in needed()


def test_provisioning_names_what_is_there() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/pollen.yml").read_text(encoding="utf-8"))[
        "providers"
    ]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/etc/grafana/dashboards")
    assert {path.stem for path in DASHBOARDS} == {"pollen-fleet", "pollen-roles"}
    assert RULES.is_dir()
