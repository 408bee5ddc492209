"""docs/gateway.md says what the settings and metrics are: every table, every setting, its default."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from gateway.counts import Counts, Gauges
from gateway.metrics import GatewayMetrics
from gateway.settings import Gateway, Server

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
TOP = "above all tables"
UNSET = object()


def documented() -> dict[str, dict[str, Any]]:
    """The settings of each table with their defaults, as the page's last section gives them."""
    found: dict[str, dict[str, Any]] = {}
    for line in PAGE.partition("## Every setting\n")[2].splitlines():
        heading = re.match(rf"\| (?:`\[(\w+)\]`|{TOP}) \| default \|", line)
        row = re.match(r"\| `(\w+)` \| (must be set|none|`[^`]+`) \|", line)
        if heading:
            found[heading[1] or TOP] = {}
        elif row:
            found[list(found)[-1]][row[1]] = _value(row[2])
    return found


def _value(text: str) -> Any:
    if text in ("must be set", "none"):
        return UNSET if text == "must be set" else None
    return tomllib.loads(f"value = {text.strip('`')}")["value"]


def declared() -> dict[str, dict[str, Any]]:
    hints = typing.get_type_hints(Gateway)
    tables = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return {TOP: _fields(Gateway)} | {name: _fields(hint) for name, hint in tables.items()}


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = [item for item in dataclasses.fields(cls) if not dataclasses.is_dataclass(hints[item.name])]
    return {item.name: _default(item) for item in fields}


def _default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    if item.default is dataclasses.MISSING:
        return UNSET
    value = str(item.default) if isinstance(item.default, Path) else item.default
    return list(value) if isinstance(value, tuple) else value


def test_the_page_has_every_table_in_order() -> None:
    assert list(documented()) == list(declared())


@pytest.mark.parametrize("table", list(declared()))
def test_the_page_has_every_setting_with_its_default(table: str) -> None:
    assert documented()[table] == declared()[table]
    assert list(documented()[table]) == list(declared()[table]), "in another order"


def test_settings_named_in_the_text_exist() -> None:
    text = PAGE.partition("## Every setting\n")[0]
    tables = declared()
    named = re.findall(r"`(\w+)\.(\w+)`", text) + re.findall(r"`\[(\w+)\] (\w+)[` ]", text)
    assert len(named) > 4
    assert not [f"{table}.{name}" for table, name in named if name not in tables.get(table, {})]


def test_the_page_has_every_metric() -> None:
    settings = Gateway(fleet="test", server=Server(ca=Path("a"), certificate=Path("b"), key=Path("c")))
    gauges = Gauges(True, True, 0, 0, 0, 0, 0, 0, {"to_server": 0})
    exported = GatewayMetrics(Counts(), lambda: gauges, lambda: settings).collect()
    suffix = {"counter": "_total", "info": "_info"}
    names = {family.name + suffix.get(family.type, "") for family in exported}
    assert names == set(re.findall(r"`(pollen_gateway_\w+)`", PAGE))
