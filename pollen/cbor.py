"""Bounded CBOR: what goes over the network is checked for size, depth and tags before it is decoded.

CBOR (RFC 8949) through the library `cbor2`. Its decoder gives meaning to some twenty tags, regular
expressions and arbitrary-precision floats among them; a payload from a device may use none but the typed
arrays of RFC 8746. So the bytes are walked first, and only then handed to the decoder.
"""

from typing import Any

import cbor2
import numpy as np
import numpy.typing as npt

from pollen.errors import MessageError

MULTI_DIMENSIONAL = 40  # RFC 8746, section 3.1.1: [shape, typed array], row-major
TYPED_ARRAYS: dict[int, str] = {70: "<u4", 72: "<i1", 84: "<f2", 85: "<f4", 86: "<f8"}  # RFC 8746, section 2
MAX_DEPTH = 8
MAX_ITEMS = 20_000
MAX_RANK = 8

_TAG_OF_DTYPE = {np.dtype(dtype): tag for tag, dtype in TYPED_ARRAYS.items()}
_ALLOWED_TAGS = frozenset({MULTI_DIMENSIONAL, *TYPED_ARRAYS})
_ARGUMENT_BYTES = {24: 1, 25: 2, 26: 4, 27: 8}
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)

Array = npt.NDArray[Any]


def encode(value: Any) -> bytes:
    """Encode maps, lists, numbers, text, bytes and numpy arrays (int8, uint32, float16, float32, float64) canonically.

    The same value gives the same bytes (RFC 8949, section 4.2.1), so digests can be taken of them.
    """
    return cbor2.dumps(_with_tags(value), canonical=True)


def decode(payload: bytes, limit_bytes: int) -> Any:
    """Decode `payload`; typed arrays come back as read-only numpy arrays that share its memory.

    Raises MessageError when it is longer than `limit_bytes`, not one well-formed item, nested deeper than
    `MAX_DEPTH`, made of more than `MAX_ITEMS` items, or uses a tag other than the typed arrays'.
    """
    if len(payload) > limit_bytes:
        raise MessageError(f"payload of {len(payload)} bytes is over the limit of {limit_bytes} bytes", "size")
    check_well_formed(payload)
    try:
        return _without_tags(cbor2.loads(payload))
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MessageError(f"payload is not valid CBOR: {error}") from error


def check_well_formed(payload: bytes) -> None:
    """Walk one CBOR item without building anything; raise MessageError when it is not acceptable.

    Indefinite lengths (RFC 8949, section 3.2) are refused: nothing in the protocol needs them.
    """
    size = len(payload)
    position = 0
    items = 0
    remaining = [1]  # items still to come at each open level
    while remaining:
        if remaining[-1] == 0:
            remaining.pop()
            continue
        remaining[-1] -= 1
        items += 1
        if position >= size or items > MAX_ITEMS:
            raise MessageError("payload is not valid CBOR: it ends early or holds too many items")
        initial = payload[position]
        major, low = initial >> 5, initial & 31
        position += 1
        if low < 24:
            argument = low
        else:
            width = _ARGUMENT_BYTES.get(low, 0)
            if width == 0 or position + width > size:
                raise MessageError("payload is not valid CBOR: bad or indefinite length")
            argument = int.from_bytes(payload[position : position + width], "big")
            position += width
        if major in (_BYTES, _TEXT):
            position += argument
            if position > size:
                raise MessageError("payload is not valid CBOR: a string is longer than the payload")
        elif major in (_ARRAY, _MAP, _TAG):
            if major == _TAG and argument not in _ALLOWED_TAGS:
                raise MessageError(f"payload uses CBOR tag {argument}, which Pollen does not accept")
            if len(remaining) > MAX_DEPTH:
                raise MessageError(f"payload is nested deeper than {MAX_DEPTH} levels")
            remaining.append(1 if major == _TAG else argument * (1 + (major == _MAP)))
    if position != size:
        raise MessageError(f"payload has {size - position} bytes after its end")


def _with_tags(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return typed_array(value)
    if isinstance(value, dict):
        return {key: _with_tags(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_tags(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def typed_array(array: Array) -> cbor2.CBORTag:
    """The RFC 8746 form of `array`: tag 40 over [shape, one of `TYPED_ARRAYS` over its little-endian bytes]."""
    tag = _TAG_OF_DTYPE.get(array.dtype)
    if tag is None:
        raise TypeError(
            f"arrays of dtype {array.dtype} have no place on the wire; use int8, uint32, float16, float32 or float64"
        )
    return cbor2.CBORTag(MULTI_DIMENSIONAL, [list(array.shape), cbor2.CBORTag(tag, array.tobytes())])


def _without_tags(value: Any) -> Any:
    if isinstance(value, cbor2.CBORTag):
        return _array_of(value)
    if isinstance(value, dict):
        return {key: _without_tags(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_tags(item) for item in value]
    return value


def _array_of(tag: cbor2.CBORTag) -> Array:
    """Turn tag 40 over a typed array into numpy; ValueError when shape and bytes disagree."""
    # cbor2 6 makes tuples of the lists inside a tag, cbor2 5 leaves them lists.
    if tag.tag != MULTI_DIMENSIONAL or not isinstance(tag.value, list | tuple) or len(tag.value) != 2:
        raise ValueError("a typed array must stand inside tag 40 [shape, array]")
    shape, inner = tag.value
    if not isinstance(inner, cbor2.CBORTag) or inner.tag not in TYPED_ARRAYS or not isinstance(inner.value, bytes):
        raise ValueError("tag 40 must hold an int8, uint32, float16, float32 or float64 typed array")
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
        raise ValueError(f"an array's shape must be a list of at most {MAX_RANK} lengths")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("an array's lengths must be whole numbers >= 0")
    flat = np.frombuffer(inner.value, TYPED_ARRAYS[inner.tag])
    expected = 1
    for length in shape:
        expected *= length
    if expected != flat.size:
        raise ValueError(f"an array of shape {shape} needs {expected} values, {flat.size} are there")
    return flat.reshape(shape)
