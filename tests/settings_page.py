"""A page of docs/ that lists every setting of a role with its default: what it says, and what the code says."""

import dataclasses
import re
import tomllib
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
TOP = "above all tables"
UNSET = object()
HEADING = "## Every setting\n"

Tables = dict[str, dict[str, Any]]


class SettingsPage:
    """The page `name` and the settings class that it documents."""

    def __init__(self, name: str, cls: type[Any]) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")
        self.documented = _documented(self.text)
        self.declared = _declared(cls)

    def check_tables(self) -> None:
        assert list(self.documented) == list(self.declared)

    def check_table(self, table: str) -> None:
        assert self.documented[table] == self.declared[table]
        assert list(self.documented[table]) == list(self.declared[table]), "in another order"

    def check_names(self, least: int, no_settings: Collection[str] = ()) -> None:
        """The settings that the text before the tables names exist; there are more than `least`."""
        text = self.text.partition(HEADING)[0]
        named = re.findall(r"`(\w+)\.(\w+)`", text) + re.findall(r"`\[(\w+)\] (\w+)[` ]", text)
        named = [(table, name) for table, name in named if name not in no_settings]
        assert len(named) > least
        assert not [f"{table}.{name}" for table, name in named if name not in self.declared.get(table, {})]


def _documented(page: str) -> Tables:
    """The settings of each table with their defaults, as the page's last section gives them."""
    found: Tables = {}
    for line in page.partition(HEADING)[2].splitlines():
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


def _declared(cls: type[Any]) -> Tables:
    hints = typing.get_type_hints(cls)
    tables = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return {TOP: _fields(cls)} | {name: _fields(hint) for name, hint in tables.items()}


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
