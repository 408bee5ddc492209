"""Typed settings: one TOML file plus `POLLEN_*` environment variables, into frozen dataclasses.

A settings class is a dataclass whose fields are values or, for TOML tables, other settings classes. A field
`models: dict[str, C]` with a settings class C holds tables `[models.<name>]`; each takes what it does not say itself
from the table around it, as far as that has it. The variable for table `broker`, field `port` is `POLLEN_BROKER_PORT`;
variables win over the file, and one for a table that has no such field is refused. A field's metadata may say
`{"secret": True}`: it is never shown, nor is what a free table of options calls "…password". Numbers must be finite.
Each error names the file or the variable, the field and the fix.
"""

import dataclasses
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union

from pollen.errors import SettingsError

T = TypeVar("T")

SECRET: Final = {"secret": True}
PREFIX: Final = "POLLEN_"
_HIDDEN: Final = "********"


def load(cls: type[T], path: Path | None, environment: Mapping[str, str] = os.environ) -> T:
    """Build `cls` from the TOML file at `path` (None: defaults only) and `environment`.

    Relative paths in the file are relative to the file's folder. Raises SettingsError.
    """
    table: dict[str, Any] = {}
    source = "environment"
    if path is not None:
        source = str(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(f"{path}: no such settings file; create it or give another with --config") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path}: can't be read as TOML: {error}") from error
    known = {variable: keys for keys, variable in _variables(cls, table)}
    _refuse_unknown(cls, set(known), environment)
    for variable, keys in known.items():
        if variable in environment:
            _put(table, keys, environment[variable], variable)
    folder = path.parent if path is not None else Path()
    built: T = _build(cls, table, "", source, folder)
    return built


def to_toml(settings: Any, *, show_secrets: bool = False) -> str:
    """The settings as TOML text, secrets masked unless `show_secrets`; fields that are None are left out."""
    lines: list[str] = []
    _write_table(lines, settings, "", show_secrets)
    return "\n".join(lines).strip() + "\n"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted names of the settings in which two of the same class differ."""
    names: list[str] = []
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(before) and type(before) is type(after):
            names += differences(before, after, f"{prefix}{item.name}.")
        elif before != after:
            names.append(f"{prefix}{item.name}")
    return names


def _write_table(lines: list[str], settings: Any, name: str, show_secrets: bool) -> None:
    if name:
        lines += ["", f"[{name}]"]
    tables = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        below = f"{name}.{item.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            tables.append((below, value))
        elif isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, value.values())):
            tables += [(f"{below}.{_toml_key(key)}", table) for key, table in value.items()]
        elif value is not None:
            hidden = item.metadata.get("secret") and value and not show_secrets
            shown = value if show_secrets or not isinstance(value, Mapping) else _without_passwords(value)
            lines.append(f"{item.name} = {_toml_value(_HIDDEN if hidden else shown)}")
    for table_name, value in tables:
        _write_table(lines, value, table_name, show_secrets)


def _without_passwords(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _HIDDEN if name.endswith("password") and value else value for name, value in options.items()}


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_text(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return _toml_text(str(value))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(text: str) -> str:
    # As in JSON, but TOML 1.0 knows no surrogate escapes, and DEL must be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _variables(cls: type[Any], table: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        path = (*keys, item.name)
        inside = table.get(item.name, {}) if isinstance(table, dict) else {}
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _variables(hints[item.name], inside, path)
        elif (named := _class_of_tables(hints[item.name])) is not None:
            for name in inside if isinstance(inside, dict) else ():
                yield from _variables(named, inside[name], (*path, name))
        else:
            yield path, PREFIX + re.sub(r"\W", "_", "_".join(path), flags=re.ASCII).upper()


def _class_of_tables(hint: Any) -> type[Any] | None:
    """C of a field `dict[str, C]` that holds named tables, None for any other field."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1]):
        return typing.cast("type[Any]", arguments[1])
    return None


def _refuse_unknown(cls: type[Any], known: set[str], environment: Mapping[str, str]) -> None:
    """A variable for one of the tables of `cls` that names no field is a typing error, as in the file.

    Other variables stay: they belong to other programs, or to a role that shares the environment.
    """
    hints = typing.get_type_hints(cls)
    tables = [name for name, hint in hints.items() if dataclasses.is_dataclass(hint) or _class_of_tables(hint)]
    for table in tables:
        prefix = f"{PREFIX}{table.upper()}_"
        for variable in environment:
            if variable.startswith(prefix) and variable not in known:
                fields = ", ".join(sorted(name for name in known if name.startswith(prefix)))
                raise SettingsError(f"{variable}: [{table}] has no such setting; known: {fields}")


def _put(table: dict[str, Any], keys: tuple[str, ...], text: str, variable: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{variable}: {key!r} in the settings file is a value, not a table")
    table[keys[-1]] = _Text(text, variable)


class _Text(str):
    """A value from the environment: text that stands for a number, a switch or a comma-separated list.

    `variable` is where it came from.
    """

    __slots__ = ("variable",)
    variable: str

    def __new__(cls, text: str, variable: str) -> "_Text":
        self = super().__new__(cls, text)
        self.variable = variable
        return self


def _build(cls: type[Any], table: Any, prefix: str, source: str, folder: Path) -> Any:
    if not isinstance(table, dict):
        raise SettingsError(f"{source}: {prefix.rstrip('.')} must be a table, [{prefix.rstrip('.')}]")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for name in table:
        if name not in fields:
            raise SettingsError(f"{source}: {prefix}{name} is no setting here; known: {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name, item in fields.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = _build(hint, table.get(name, {}), f"{prefix}{name}.", source, folder)
        elif name in table and (named := _class_of_tables(hint)) is not None:
            if not isinstance(table[name], dict):
                raise SettingsError(f"{source}: {prefix}{name} must hold tables, [{prefix}{name}.<name>]")
            values[name] = {
                key: _build(named, inner, f"{prefix}{name}.{key}.", source, folder)
                for key, inner in _inheriting(named, table, name).items()
            }
        elif name in table:
            if item.metadata.get("secret") and not isinstance(table[name], str):
                raise SettingsError(f"{source}: {prefix}{name} must be text")  # which is not shown
            values[name] = _convert(table[name], hint, f"{prefix}{name}", source, folder)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{source}: {prefix}{name} is missing; set it there or in the environment")
    try:
        return cls(**values)
    except (ValueError, SettingsError) as error:
        raise SettingsError(f"{_origin(table, str(error), source)}: {prefix}{error}") from error


def _inheriting(cls: type[Any], around: dict[str, Any], name: str) -> dict[str, Any]:
    """The tables under `name`, each with what it does not say itself from the table `around` them."""
    shared = {item.name: around[item.name] for item in dataclasses.fields(cls) if item.name in around}
    return {key: shared | table if isinstance(table, dict) else table for key, table in around[name].items()}


def _origin(table: Mapping[str, Any], refusal: str, source: str) -> str:
    """Whom to blame when a table's values were refused together: the variables among those that `refusal` names."""
    named = set(re.findall(r"\w+", refusal))
    variables = [value.variable for name, value in table.items() if name in named and isinstance(value, _Text)]
    return ", ".join(variables) or source


def _convert(value: Any, hint: Any, name: str, source: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, Union):  # X | None
        return _convert(value, next(a for a in arguments if a is not type(None)), name, source, folder)
    if origin is Literal:
        if value in arguments:
            return str(value)
        raise _wrong(source, name, value, "one of " + ", ".join(map(repr, arguments)))
    if origin is tuple:
        if isinstance(value, _Text):
            value = [_Text(part.strip(), value.variable) for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            raise _wrong(source, name, value, "a list")
        return tuple(_convert(item, arguments[0], name, source, folder) for item in value)
    if origin is dict:
        if isinstance(value, dict) and all(_is_scalar(item) for item in value.values()):
            return dict(value)
        raise _wrong(source, name, value, "a table of finite numbers, texts or switches")
    return _convert_plain(value, hint, name, source, folder)


def _convert_plain(value: Any, hint: Any, name: str, source: str, folder: Path) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, _Text) and value.lower() in ("true", "false", "1", "0"):
            return value.lower() in ("true", "1")
        raise _wrong(source, name, value, "true or false")
    if hint in (int, float):
        return _convert_number(value, hint, name, source)
    if not isinstance(value, str):
        raise _wrong(source, name, value, "text")
    if hint is Path:
        return Path(value) if isinstance(value, _Text) else folder / value
    return str(value)


def _convert_number(value: Any, hint: type[int] | type[float], name: str, source: str) -> int | float:
    expected = "a whole number" if hint is int else "a finite number"
    right = isinstance(value, _Text | int if hint is int else _Text | int | float)
    if isinstance(value, bool) or not right:
        raise _wrong(source, name, value, expected)
    try:
        number = hint(value)
    except (ValueError, OverflowError):
        raise _wrong(source, name, value, expected) from None
    if hint is float and not math.isfinite(number):
        raise _wrong(source, name, value, expected)
    return number


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _wrong(source: str, name: str, value: Any, expected: str) -> SettingsError:
    origin = value.variable if isinstance(value, _Text) else source
    shown = _without_passwords(value) if isinstance(value, Mapping) else value
    return SettingsError(f"{origin}: {name} = {shown!r} must be {expected}")
