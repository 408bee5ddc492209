"""Typed access to the fields of a bundle's maps: each getter returns a value of the type asked for, or BundleError."""

from typing import Any, Final

from pollen.errors import BundleError

MAX_AXES: Final = 8  # so that the product of hostile lengths stays a number that is quickly made


def get(fields: dict[str, Any], name: str, kind: type) -> Any:
    """The value of a field that must be exactly of type `kind`, else BundleError."""
    value = fields.get(name)
    if type(value) is not kind:
        raise BundleError(f"field {name!r} must be {kind.__name__}; compile it again")
    return value


def lengths(fields: dict[str, Any], name: str) -> tuple[int, ...]:
    """A list of lengths, each >= 0, at most `MAX_AXES`."""
    entries = get(fields, name, list)
    if len(entries) > MAX_AXES or not all(type(entry) is int and entry >= 0 for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of at most {MAX_AXES} lengths; compile it again")
    return tuple(entries)


def texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts."""
    entries = get(fields, name, list)
    if not all(type(entry) is str for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of names; compile it again")
    return tuple(entries)


def reals(fields: dict[str, Any], name: str) -> tuple[float, ...]:
    """A list of floats."""
    entries = get(fields, name, list)
    if not all(type(entry) is float for entry in entries):
        raise BundleError(f"manifest field {name!r} must be a list of floats; compile it again")
    return tuple(entries)


def named_reals(fields: dict[str, Any], name: str) -> dict[str, float]:
    """A map from names to floats."""
    entries = get(fields, name, dict)
    return {key: get(entries, key, float) for key in entries}
