"""Values in JSON, found by a path such as "sensors.0.temperature": keys and positions, joined by dots."""

import json
import math
from typing import Any, Final

from edge_client.sensors.number import finite, number

# As binary sensors say it to Home Assistant.
_SWITCHES: Final = {"ON": 1.0, "OFF": 0.0, "true": 1.0, "false": 0.0}


def document(text: str) -> Any:
    """What the JSON `text` holds, None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def value_at(found: Any, path: str) -> float | None:
    """The number at `path` in what `document` gave; None when nothing is there, NaN for what is nothing like a number.

    A switch is 1 or 0, text is the number it says.
    """
    for step in path.split("."):
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    if isinstance(found, str):
        return plain_value(found)
    if not isinstance(found, bool | int | float):
        return math.nan
    try:
        return finite(float(found))
    except OverflowError:
        return math.nan


def plain_value(text: str) -> float:
    """The number that `text` says, 1 or 0 for a switch, NaN for anything else."""
    return _SWITCHES.get(text.strip(), number(text))
