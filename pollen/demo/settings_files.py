"""Writes the TOML files of the roles. Plain tables: the demo knows the settings by name, as a person's editor does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pollen import atomic

Table = Mapping[str, Any]


def write(path: Path, settings: Table) -> Path:
    """Write `settings` to `path`, readable by its owner alone, since passwords stand in it. Returns `path`."""
    atomic.write(path, to_toml(settings).encode())
    return path


def to_toml(settings: Table) -> str:
    """TOML text: top-level values first, then a table for each mapping; a mapping inside a table goes inline."""
    lines = [f"{key} = {_value(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False)
