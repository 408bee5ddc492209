"""A model's variables by name and by role: the order and the names that bundles, updates and exports share."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pollen.bundle import Floats, Tensor
from pollen.errors import CompileError

Named = list[tuple[Tensor, Any]]


@dataclass(frozen=True, slots=True)
class Variables:
    """A model's float variables, each as (tensor, Keras variable), named "layer/variable" or "layer/part/variable".

    `trained` in the order of Keras's trainable_variables, `state` (moving averages that training moves) and `frozen`
    (what stays as it is) in that of its non_trainable_variables.
    """

    trained: Named
    state: Named
    frozen: Named

    def all(self) -> Named:
        """Every float variable."""
        return self.trained + self.state + self.frozen


def variables(model: Any) -> Variables:
    """The variables of `model` as they are to be trained now. Raises CompileError when names aren't unique."""
    owners = {id(variable): layer for layer in model.layers for variable in layer.variables}
    found = Variables([], [], [])
    trained = {id(variable) for variable in model.trainable_variables}
    for variable in model.trainable_variables + model.non_trainable_variables:
        layer = owners[id(variable)]
        if "float" not in str(variable.dtype):
            continue  # the seed of a random generator, which the device doesn't use
        moves = type(layer) is keras.layers.BatchNormalization and layer.trainable
        role = found.trained if id(variable) in trained else found.state if moves else found.frozen
        role.append((Tensor(_name(layer, variable), tuple(variable.shape)), variable))
    names = {tensor.name for tensor, _ in found.all()}
    if len(names) != len(found.all()):
        raise CompileError(f"model {model.name!r}: its weights have no unique names; give its layers unique names")
    return found


def _name(layer: Any, variable: Any) -> str:
    """The variable's path from its layer on: parts of a layer (a cell, a wrapped layer) have variables of one name."""
    parts = variable.path.split("/")
    below = parts[parts.index(layer.name) + 1 :] if layer.name in parts else parts
    return "/".join([layer.name, *below])


def flat(named: Named) -> Floats:
    """The values of these variables as one float32 vector, row-major, one after the other."""
    return np.concatenate([np.zeros(0, np.float32), *(np.asarray(v, np.float32).ravel() for _, v in named)])
