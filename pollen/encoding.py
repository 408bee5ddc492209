"""Encodings of a delta on the wire: f32, f16, q8 and topk, each a function of a flat vector and its tensors' shapes.

A flat float32 vector `v[P]` is all tensors of a model, raveled row-major and laid end to end in the manifest's order.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from pollen.bundle import Tensor
from pollen.errors import MessageError

Encoding = Literal["f32", "f16", "q8", "topk"]
ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)

Vector = npt.NDArray[np.float32]

SHOWN_NAME: Final = 64  # characters of a foreign name that an error repeats
TOPK_SHARE: Final = 0.05
_F16_LARGEST: Final = float(np.finfo(np.float16).max)
_F16_NORMAL: Final = float(np.finfo(np.float16).tiny)


def parameters(tensors: Sequence[Tensor]) -> int:
    """How many numbers `tensors` hold together."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def named(vector: Vector, tensors: Sequence[Tensor]) -> dict[str, Vector]:
    """Views of the flat `vector`, one a tensor, by name."""
    views: dict[str, Vector] = {}
    start = 0
    for tensor in tensors:
        end = start + math.prod(tensor.shape)
        views[tensor.name] = vector[start:end].reshape(tensor.shape)
        start = end
    return views


def encode(
    delta: Vector, tensors: Sequence[Tensor], encoding: Encoding, chance: random.Random, share: float = TOPK_SHARE
) -> dict[str, Any]:
    """Named wire values of `delta[P]`.

    f32: the numbers themselves. f16: rounded to nearest, magnitudes above 65504 clipped. q8: per tensor
    int8 codes with scale max|v| / 127 and stochastic rounding (unbiased: E[code * scale] = v; Alistarh et al.,
    QSGD, 2017, section 3.1), drawn from `chance`. topk: the `share` of all numbers with the largest magnitudes, and
    where they stand in their tensors (Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", 2018, definition 2.1);
    zeros are left out.
    """
    if encoding == "topk":
        return _largest(delta, tensors, share)
    views = named(delta, tensors)
    if encoding == "f32":
        return dict(views)
    if encoding == "f16":
        # asarray: numpy makes a scalar of every result without a dimension.
        return {name: np.asarray(np.clip(v, -_F16_LARGEST, _F16_LARGEST), np.float16) for name, v in views.items()}
    return {name: _quantise(view, chance) for name, view in views.items()}


def _quantise(values: Vector, chance: random.Random) -> dict[str, Any]:
    largest = float(np.max(np.abs(values), initial=0.0))
    scale = float(np.float32(largest / 127))
    if scale == 0.0:  # also when the division underflows: such values are below any step worth sending
        return {"scale": 0.0, "q": np.zeros(values.shape, np.int8)}
    codes = values.ravel() / np.float32(scale)
    # Not numpy.random, which takes 7 MB. 16 bits are as fine as the float32 sum is at 127, where its last bit is 2^-17.
    uniform = np.frombuffer(chance.randbytes(2 * codes.size), np.uint16)
    codes += (uniform + np.float32(0.5)) * np.float32(2**-16)
    codes = np.clip(np.floor(codes), -127, 127)
    return {"scale": scale, "q": codes.astype(np.int8).reshape(values.shape)}


def _largest(delta: Vector, tensors: Sequence[Tensor], share: float) -> dict[str, Any]:
    magnitudes = np.abs(delta)
    count = min(max(1, round(share * len(delta))), len(delta))
    least = np.partition(magnitudes, len(delta) - count)[len(delta) - count] if count else 0
    chosen = magnitudes > least
    if least:
        chosen[np.flatnonzero(magnitudes == least)[: count - np.count_nonzero(chosen)]] = True
    places = np.flatnonzero(chosen)
    wire = {}
    start = 0
    for tensor in tensors:
        end = start + math.prod(tensor.shape)
        first, last = np.searchsorted(places, (start, end))
        own = places[first:last]
        values = delta[own]
        # float16 keeps three digits of a normal number, fewer of one that is smaller.
        fits = bool(np.all((magnitudes[own] >= _F16_NORMAL) & (magnitudes[own] <= _F16_LARGEST)))
        wire[tensor.name] = {"i": (own - start).astype(np.uint32), "v": values.astype(np.float16) if fits else values}
        start = end
    return wire


def decode_into(out: Vector, wire: Any, tensors: Sequence[Tensor]) -> None:
    """Write the named wire values of a delta into the flat `out[P]`.

    Raises MessageError, naming the tensor, when a name is missing or unknown, a shape or dtype is wrong, or a
    number is not finite; `out` may then be partly written.
    """
    if not isinstance(wire, dict):
        raise MessageError("delta must be a map of named tensors", "names")
    if len(wire) != len(tensors):
        known = {tensor.name for tensor in tensors}
        unknown = sorted(str(name)[:SHOWN_NAME] for name in wire if name not in known)
        reason = f"delta has {len(wire)} tensors, the model has {len(tensors)}; unknown: {unknown[:3]}"
        raise MessageError(reason, "names")
    start = 0
    for tensor in tensors:
        end = start + math.prod(tensor.shape)
        if tensor.name not in wire:
            raise MessageError(f"delta lacks tensor {tensor.name!r}", "names")
        _decode_one(out[start:end], wire[tensor.name], tensor)
        start = end
    if not np.isfinite(out).all():
        raise MessageError("delta holds a number that is not finite", "not-finite")


def _decode_one(out: Vector, value: Any, tensor: Tensor) -> None:
    scale: float | None = None
    if isinstance(value, dict) and "i" in value:
        _decode_largest(out, value["i"], value.get("v"), tensor)
        return
    if isinstance(value, dict):
        scale, value = value.get("scale"), value.get("q")
        if type(scale) is not float or not isinstance(value, np.ndarray) or value.dtype != np.int8:
            raise MessageError(f"tensor {tensor.name!r}: q8 needs a float scale and int8 codes", "dtype")
    elif not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float16):
        raise MessageError(f"tensor {tensor.name!r}: expected a float32, float16, q8 or topk array", "dtype")
    if value.shape != tensor.shape:
        raise MessageError(f"tensor {tensor.name!r} has shape {value.shape}, the model has {tensor.shape}", "shapes")
    if scale is None:
        out[:] = value.ravel()
    else:
        # An enormous scale overflows to inf here; the caller's finiteness check refuses it.
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(value.ravel(), np.float32(scale), out=out, dtype=np.float32)


def _decode_largest(out: Vector, places: Any, values: Any, tensor: Tensor) -> None:
    fits = isinstance(places, np.ndarray) and places.dtype == np.uint32 and isinstance(values, np.ndarray)
    if not fits or values.dtype not in (np.float32, np.float16):
        raise MessageError(f"tensor {tensor.name!r}: topk needs uint32 places and float32 or float16 values", "dtype")
    if places.ndim != 1 or values.shape != places.shape or len(places) > len(out):
        reason = f"topk has places {places.shape} and values {values.shape}, the tensor {len(out)} numbers"
        raise MessageError(f"tensor {tensor.name!r}: {reason}", "shapes")
    if len(places) and (places[-1] >= len(out) or not (places[1:] > places[:-1]).all()):
        raise MessageError(f"tensor {tensor.name!r}: topk places must rise and lie below {len(out)}", "shapes")
    out[:] = 0
    out[places] = values
