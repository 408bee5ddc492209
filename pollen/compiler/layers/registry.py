"""Which layers can be compiled, and what else of each has to be checked."""

from collections.abc import Callable
from typing import Any

from pollen.compiler.layers.activations import problem_with_activation

Problem = str | None
Check = Callable[[Any], Problem]

_checks: dict[type, Check] = {}


def can_compile(*kinds: type) -> Callable[[Check], Check]:
    """Register `check(layer)`, which says why a layer of these kinds can't be compiled, or returns None."""

    def register(check: Check) -> Check:
        _checks.update(dict.fromkeys(kinds, check))
        return check

    return register


def check_of(layer: Any) -> Check | None:
    """The check of a layer's kind, None when no layer of that kind can be compiled."""
    return _checks.get(type(layer))


def names() -> list[str]:
    """The kinds of layers that can be compiled."""
    return sorted(kind.__name__ for kind in _checks)


def problem_with_quantised(layer: Any) -> Problem:
    """Why a layer with LoRA or quantised weights can't be compiled."""
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return f"LoRA and quantised layers don't train on the device; use a plain {type(layer).__name__}"
    return None


def first_problem(layer: Any) -> Problem:
    """What most layers with weights and an activation can be wrong in."""
    return problem_with_quantised(layer) or problem_with_activation(layer)
