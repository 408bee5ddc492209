"""Typed access to the fields of a decoded message: each getter returns a checked value or raises MessageError."""

import builtins
import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pollen.errors import MessageError

MAX_TEXT: Final = 1024
MAX_ENTRIES: Final = 256
# A map's names come back in histories and logs: 64 of 64 characters hold any device's metrics.
MAX_NAME: Final = 64
MAX_NAMED: Final = 64
MAX_WHOLE: Final = 2**63 - 1

_REQUIRED: Final = object()
_Choice = TypeVar("_Choice", bound=str)


class Fields:
    """A decoded map and the kind of message it is, for the error's text."""

    def __init__(self, values: Mapping[Any, Any], kind: str) -> None:
        self._values = values
        self._kind = kind

    def any(self, name: str) -> Any:
        """The field as it is; MessageError when it is missing."""
        return self._get(name, _REQUIRED)

    def bytes(self, name: str, length: int) -> builtins.bytes:
        """A byte string of exactly `length` bytes."""
        value = self._get(name, _REQUIRED)
        if not isinstance(value, bytes) or len(value) != length:
            raise self._wrong(name, f"{length} bytes")
        return value

    def bytes_or_none(self, name: str, *lengths: int) -> builtins.bytes | None:
        """A byte string of one of `lengths` bytes, None when the field is missing."""
        value = self._get(name, None)
        if value is not None and (not isinstance(value, bytes) or len(value) not in lengths):
            raise self._wrong(name, f"{' or '.join(map(str, lengths))} bytes")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number from 0 to 2^63 - 1."""
        value = self._get(name, _REQUIRED if default is None else default)
        if type(value) is not int or not 0 <= value <= MAX_WHOLE:
            raise self._wrong(name, "a whole number from 0 to 2^63 - 1")
        return value

    def real(self, name: str, minimum: float = -math.inf) -> float:
        """A finite number not below `minimum`."""
        value = self._get(name, _REQUIRED)
        if not _is_finite(value) or value < minimum:
            raise self._wrong(name, "a finite number")
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._get(name, _REQUIRED)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Text of at most 1,024 characters."""
        value = self._get(name, _REQUIRED if default is None else default)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self._wrong(name, f"text of at most {MAX_TEXT} characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty when the field is missing."""
        value = self._get(name, [])
        if not isinstance(value, list) or len(value) > MAX_ENTRIES:
            raise self._wrong(name, f"a list of at most {MAX_ENTRIES} texts")
        if not all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value):
            raise self._wrong(name, f"texts of at most {MAX_TEXT} characters")
        return tuple(value)

    def choice(self, name: str, choices: tuple[_Choice, ...]) -> _Choice:
        """One of `choices`."""
        value = self._get(name, _REQUIRED)
        for known in choices:
            if isinstance(value, str) and value == known:
                return known
        raise self._wrong(name, "one of " + ", ".join(choices))

    def reals(self, name: str) -> dict[str, float]:
        """A map from at most 64 names of at most 64 characters to finite numbers, empty when the field is missing."""
        entries = self._entries(name)
        if not all(_is_finite(value) for value in entries.values()):
            raise self._wrong(name, "a map of finite numbers")
        return {key: float(value) for key, value in entries.items()}

    def scalars(self, name: str) -> dict[str, bool | int | float | str]:
        """As `reals`, but the values may also be texts of at most 1,024 characters, true or false."""
        entries = self._entries(name)
        for value in entries.values():
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise self._wrong(name, f"a map with texts of at most {MAX_TEXT} characters")
            if not isinstance(value, bool | str) and not _is_finite(value):
                raise self._wrong(name, "a map of finite numbers, texts, true or false")
        return dict(entries)

    def _entries(self, name: str) -> dict[str, Any]:
        value = self._get(name, {})
        if not isinstance(value, dict) or len(value) > MAX_NAMED:
            raise self._wrong(name, f"a map of at most {MAX_NAMED} entries")
        if not all(isinstance(key, str) and len(key) <= MAX_NAME for key in value):
            raise self._wrong(name, f"a map with text keys of at most {MAX_NAME} characters")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is _REQUIRED:
            raise MessageError(f"{self._kind}: field {name!r} is missing")
        return value

    def _wrong(self, name: str, expected: str) -> MessageError:
        return MessageError(f"{self._kind}: field {name!r} must be {expected}")


def _is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float64 holds; a big whole number that overflows is not."""
    if type(value) is int:
        return abs(value) <= MAX_WHOLE
    return type(value) is float and math.isfinite(value)
