"""Dense, and the input."""

from typing import Any

import keras

from pollen.compiler.layers.registry import Problem, can_compile, first_problem

_LAYERS = keras.layers


@can_compile(_LAYERS.Dense)
def _dense(layer: Any) -> Problem:
    return first_problem(layer)


@can_compile(_LAYERS.InputLayer)
def _input(layer: Any) -> Problem:  # noqa: ARG001 - one signature for all checks
    return None
