"""A sensor's `[sensor] options` as a typed dataclass."""

import dataclasses
import typing
from typing import TypeVar

from edge_client.sensors import Options
from pollen.errors import SettingsError

T = TypeVar("T")


def parse(cls: type[T], options: Options) -> T:
    """Build the dataclass `cls`, whose fields are bool, int, float or str, from `options`.

    Raises SettingsError for an unknown name, a wrong type, or what `cls` refuses with ValueError.
    """
    hints = typing.get_type_hints(cls)
    for name, value in options.items():
        if name not in hints:
            raise SettingsError(f"sensor.options.{name} is no option here; known: {', '.join(sorted(hints))}")
        wanted = hints[name]
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            shown = "" if name.endswith("password") else f" = {value!r}"
            raise SettingsError(f"sensor.options.{name}{shown} must be of type {wanted.__name__}")
    missing = [
        item.name
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]
        if item.default is dataclasses.MISSING and item.name not in options
    ]
    if missing:
        raise SettingsError(f"sensor.options.{missing[0]} is missing; set it")
    try:
        return cls(**options)
    except ValueError as error:
        raise SettingsError(f"sensor.options.{error}") from error
