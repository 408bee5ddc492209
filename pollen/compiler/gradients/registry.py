"""Which op types have a gradient of our own."""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

_Gradient = TypeVar("_Gradient", bound=Callable[..., Any])
_registered: dict[str, str] = {}


def gradient_of(op_type: str) -> Callable[[_Gradient], _Gradient]:
    """Register `function(op, dy, …)` as the builtin-only gradient of `op_type`."""

    def register(function: _Gradient) -> _Gradient:
        name = f"PollenBuiltin{op_type}"
        tf.RegisterGradient(name)(function)
        _registered[op_type] = name
        return function

    return register


def overrides() -> dict[str, str]:
    """What `tf.Graph.gradient_override_map` takes: op type to the name of its registered gradient."""
    return dict(_registered)
