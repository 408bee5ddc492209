"""Channels as text options: several names, units or ranges in one setting, separated by commas."""

import math
from collections.abc import Sequence

from edge_client.sensors import Channel


def listed(option: str, text: str) -> list[str]:
    """The parts of a comma-separated list. Raises ValueError, naming `option`, for an empty or a repeated one."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if "" in parts:
        raise ValueError(f"{option} = {text!r} has an empty entry; separate entries by single commas")
    repeated = sorted({part for part in parts if parts.count(part) > 1})
    if repeated:
        raise ValueError(f"{option} = {text!r} names {repeated[0]!r} twice")
    return parts


def described(names: Sequence[str], units: str, ranges: str) -> tuple[Channel, ...]:
    """Channels with `units` such as "°C, %" and `ranges` such as "-40..85, 0..100", both in the order of `names`.

    Either may be "": no units, no limits. Raises ValueError naming the option.
    """
    unit_list = _parallel("units", units, names) or [""] * len(names)
    limits = [_limits(part) for part in _parallel("ranges", ranges, names)] or [(-math.inf, math.inf)] * len(names)
    return tuple(Channel(name, unit, *limit) for name, unit, limit in zip(names, unit_list, limits, strict=True))


def _parallel(option: str, text: str, names: Sequence[str]) -> list[str]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if parts and len(parts) != len(names):
        raise ValueError(f"{option} = {text!r} has {len(parts)} entries for {len(names)} channels")
    return parts


def _limits(text: str) -> tuple[float, float]:
    """ "low..high" as numbers; "" has none, and neither end must be given."""
    low, dots, high = text.partition("..")
    try:
        limits = (float(low) if low.strip() else -math.inf, float(high) if high.strip() else math.inf)
    except ValueError:
        limits = (math.nan, math.nan)
    if (text and not dots) or not limits[0] < limits[1]:
        raise ValueError(f"ranges: {text!r} must be like -40..85, the lower number first")
    return limits
