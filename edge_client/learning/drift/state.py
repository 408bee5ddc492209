"""Reading a detector's kept state, which may be damaged."""

from typing import Any, Final

LARGEST: Final = 1e30  # far beyond any error, and its square is finite


def number(state: Any, name: str) -> float:
    """The number `name` of `state`. Raises ValueError where there is none."""
    return numbers([state.get(name) if isinstance(state, dict) else None], name)[0]


def count(state: Any, name: str, most: int) -> int:
    """The whole number `name` of `state`, from 0 to `most`. Raises ValueError where there is none."""
    value = state.get(name) if isinstance(state, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{name}: {value!r} is no whole number from 0 to {most}")
    return value


def numbers(values: Any, name: str) -> list[float]:
    """`values` as floats. Raises ValueError unless they are a list of finite numbers."""
    if not isinstance(values, list):
        raise ValueError(f"{name}: no list")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ValueError(f"{name}: {value!r} is no finite number")
    return [float(value) for value in values]
