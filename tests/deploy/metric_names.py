"""Which metrics rules and dashboards ask for."""

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.unit_files import PROJECT

RULES: Final = PROJECT / "deploy" / "prometheus" / "rules"
DASHBOARDS: Final = tuple(sorted((PROJECT / "deploy" / "grafana" / "dashboards").glob("*.json")))
_METRIC: Final = re.compile(r"\b(?:[a-z_]+:)?(?:pollen|process)_[a-z0-9_]+(?::[a-z0-9_]+)?")
_TEXT: Final = re.compile(r'"[^"]*"')


def rules(path: Path) -> list[dict[str, Any]]:
    """The rules of a file, of all its groups."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def in_expression(text: str) -> set[str]:
    """The metrics that an expression names; what stands in quotes is no metric."""
    return set(_METRIC.findall(_TEXT.sub("", text)))


def queries(dashboard: Path) -> list[str]:
    """Every expression of a dashboard, its variables' included."""
    board = json.loads(dashboard.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]


def recorded() -> set[str]:
    """The metrics that recording rules make."""
    return {rule["record"] for rule in rules(RULES / "recording.yml")}


def needed() -> set[str]:
    """The metrics that services must export."""
    expressions = [rule["expr"] for path in sorted(RULES.glob("*.yml")) for rule in rules(path)]
    expressions += [query for dashboard in DASHBOARDS for query in queries(dashboard)]
    return set().union(*map(in_expression, expressions)) - recorded()
