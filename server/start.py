"""What training starts from: the model's tensors and weights, from whoever has them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord
from flwr.common import Parameters, parameters_to_ndarrays
from flwr.common.typing import NDArrays

from pollen.bundle import Bundle, Tensor
from pollen.errors import MessageError, PollenError
from server.arrays import flatten
from server.rules.rule import Vector


@dataclass(frozen=True, slots=True)
class Start:
    """The model's tensors, and the same under the names that ordinary clients know; the weights [P] that training
    starts from; the digest of what a state store must belong to."""

    tensors: tuple[Tensor, ...]
    client_tensors: tuple[Tensor, ...]
    weights: Vector
    origin: bytes


def start_of(
    bundle: Bundle | None,
    initial_arrays: ArrayRecord | None,
    initial_parameters: Callable[[], Parameters | None],
    a_clients: Callable[[], Parameters] | None,
) -> Start:
    """The first that is there of `initial_arrays`, the strategy's `initial_parameters()`, the devices' `bundle`, and a
    client's own parameters.

    Raises PollenError when there is nothing to start from, and for arrays that do not fit the bundle or are not finite.
    """
    names: list[str] | None = None
    arrays: NDArrays | None = None
    if initial_arrays is not None:
        names, arrays = list(initial_arrays), initial_arrays.to_numpy_ndarrays()
    elif (parameters := initial_parameters()) is not None:
        arrays = parameters_to_ndarrays(parameters)
    if bundle is not None:
        tensors = bundle.manifest.shared
        weights = bundle.shared if arrays is None else _flat(arrays, tensors)
        return Start(tensors, _renamed(tensors, names), weights, bundle.digest)
    if arrays is None:
        if a_clients is None:
            raise PollenError("initial arrays: there are none; give AsyncServer, or its run, initial_arrays")
        arrays = parameters_to_ndarrays(a_clients())
    if not arrays:
        raise PollenError("initial parameters: there are none; give the strategy initial_parameters")
    names = names or [str(number) for number in range(len(arrays))]
    tensors = tuple(Tensor(name, array.shape) for name, array in zip(names, arrays, strict=True))
    shapes = repr([tensor.shape for tensor in tensors])
    return Start(tensors, tensors, _flat(arrays, tensors), hashlib.sha256(shapes.encode()).digest())


def _renamed(tensors: Sequence[Tensor], names: list[str] | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(n, t.shape) for n, t in zip(names, tensors, strict=True)) if names else tuple(tensors)


def _flat(arrays: NDArrays, tensors: Sequence[Tensor]) -> Vector:
    try:
        return flatten(arrays, tensors)
    except MessageError as error:
        raise PollenError(f"initial parameters: {error}") from error
