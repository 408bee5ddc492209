"""Which op types have a gradient of our own."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import tensorflow as tf

from pollen.errors import CompileError

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


def refuse(op: tf.Operation, why: str) -> NoReturn:
    """Raise CompileError naming an op that its gradient isn't written for; `why` with what to do."""
    raise CompileError(f"op {op.name!r} ({op.type}) can't be compiled: {why}")


def overrides() -> dict[str, str]:
    """What `tf.Graph.gradient_override_map` takes: op type to the name of its registered gradient."""
    return dict(_registered)
