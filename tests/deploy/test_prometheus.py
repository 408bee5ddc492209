"""Prometheus's configuration, rules and alerts, by promtool; alerts have their page in the operator's guide."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.alert_cases import CASES, Series
from tests.deploy.conftest import Tool
from tests.deploy.metric_names import rules
from tests.deploy.unit_files import PROJECT

FOLDER = PROJECT / "deploy" / "prometheus"
ALERTS = FOLDER / "rules" / "alerts.yml"
RECORDING = FOLDER / "rules" / "recording.yml"


def promtool(tool: Tool, *arguments: object) -> str:
    done = subprocess.run(
        [tool("promtool", "prometheus"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_valid(tool: Tool) -> None:
    shown = promtool(tool, "check", "config", FOLDER / "prometheus.yml")
    assert f"SUCCESS: {len(rules(ALERTS))} rules found" in shown


def test_targets_are_the_ports_of_the_example_settings() -> None:
    for job, example in (("pollen-server", "server"), ("pollen-gateway", "gateway-1")):
        targets = yaml.safe_load((FOLDER / "targets" / f"{job}.yml").read_text(encoding="utf-8"))
        settings = tomllib.loads((PROJECT / "deploy/systemd/settings" / f"{example}.toml").read_text(encoding="utf-8"))
        assert targets == [{"targets": [f"{settings['http']['host']}:{settings['http']['port']}"]}]


def firing(alert: str, series: Series, minutes: int, expected: bool) -> dict[str, Any]:
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"{count} or vector(0)",
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": int(expected)}],
            }
        ],
    }


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tool: Tool, tmp_path: Path) -> None:
    case = CASES[alert]
    tests = [
        firing(alert, case.fires, case.minutes, expected=True),
        firing(alert, case.quiet, case.minutes, expected=False),
    ]
    if case.early is not None:
        tests.append(firing(alert, case.fires, case.early, expected=False))
    file = tmp_path / "alert.test.yml"
    # JSON is YAML.
    file.write_text(
        json.dumps({"rule_files": [str(RECORDING), str(ALERTS)], "evaluation_interval": "1m", "tests": tests}),
        encoding="utf-8",
    )
    promtool(tool, "test", "rules", file)


def test_every_alert_has_its_case_its_words_and_its_page() -> None:
    guide = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^a-z0-9 _-]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in guide.splitlines()
        if line.startswith("#")
    }
    alerts = rules(ALERTS)
    assert [rule["alert"] for rule in alerts] == list(CASES)
    for rule in alerts:
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (file, anchor in anchors) == ("docs/operations.md", True), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith((".", ": {{ $labels.kind }}.", "}."))
