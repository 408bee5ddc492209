"""docs/sensors.md says what the code does: every sensor, every option, its default."""

import dataclasses
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edge_client import sensors

PAGE = (Path(__file__).parents[3] / "docs" / "sensors.md").read_text()
UNSET = object()


def documented() -> dict[str, dict[str, Any]]:
    """The options of each kind with their defaults, as the page's tables give them."""
    kinds = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        name = re.match(r"`(\w+)`\n", section)
        if name:
            rows = re.findall(r"^\| `(\w+)` \| (must be set|`[^`]+`) \|", section, re.MULTILINE)
            kinds[name[1]] = {option: _value(default) for option, default in rows}
    return kinds


def _value(text: str) -> Any:
    return UNSET if text == "must be set" else tomllib.loads(f"value = {text.strip('`')}")["value"]


def declared(kind: str) -> dict[str, Any]:
    module = importlib.import_module(sensors._BUILT_IN[kind][0])
    classes = [one for name, one in vars(module).items() if name.endswith("Options") and dataclasses.is_dataclass(one)]
    assert len(classes) == 1
    fields = dataclasses.fields(classes[0])
    return {item.name: UNSET if item.default is dataclasses.MISSING else item.default for item in fields}


def test_the_page_has_every_built_in_sensor() -> None:
    assert set(documented()) == set(sensors._BUILT_IN)


@pytest.mark.parametrize("kind", sorted(sensors._BUILT_IN))
def test_the_page_has_every_option_with_its_default(kind: str) -> None:
    assert documented()[kind] == declared(kind)
    assert list(documented()[kind]) == list(declared(kind)), "in another order"
