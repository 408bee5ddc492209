"""A model's trainable tensors by name: the order and the names that bundles, updates and exports share."""

from typing import Any

import numpy as np

from pollen.bundle import Floats, Tensor
from pollen.errors import CompileError


def trainable(model: Any) -> list[tuple[Tensor, Any]]:
    """(tensor, Keras variable) of all trainable weights in Keras's order, named "layer/variable"."""
    names = {
        id(variable): f"{layer.name}/{variable.name}"
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    variables = model.trainable_variables
    if len({names.get(id(variable)) for variable in variables} - {None}) != len(variables):
        raise CompileError(f"model {model.name!r}: its weights have no unique names; give its layers unique names")
    return [(Tensor(names[id(variable)], tuple(variable.shape)), variable) for variable in variables]


def flat(model: Any) -> Floats:
    """All trainable weights as one float32 vector [P], row-major, in the order of `trainable`."""
    return np.concatenate([np.asarray(variable, np.float32).ravel() for _, variable in trainable(model)])
