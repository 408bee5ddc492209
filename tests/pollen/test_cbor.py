"""Bounded CBOR: what we write any CBOR tool reads, and nothing that comes in does harm."""

import time

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pollen import cbor
from pollen.errors import MessageError
from tests.pollen.refusals import refusal

LIMIT = 10**7

arrays = npst.arrays(
    st.sampled_from([np.int8, np.uint32, np.float16, np.float32]),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
values = st.recursive(
    st.one_of(scalars, arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(0, 99)), inner, max_size=4),
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))  # noqa: PLR0124 - NaN


@given(values)
def test_whatever_is_encoded_comes_back_the_same(value: object) -> None:
    payload = cbor.encode(value)
    if refused := refusal(cbor.decode, payload, LIMIT):
        assert "nested deeper" in refused
        return
    decoded = cbor.decode(payload, LIMIT)
    assert same(value, decoded)
    assert cbor.encode(decoded) == payload


@given(st.dictionaries(st.text(max_size=8), scalars, max_size=6))
def test_the_same_map_gives_the_same_bytes_in_whatever_order_it_was_filled(value: dict[str, object]) -> None:
    assert cbor.encode(dict(reversed(value.items()))) == cbor.encode(value)


@settings(max_examples=400)
@given(st.binary(max_size=300))
def test_random_bytes_are_decoded_or_refused(payload: bytes) -> None:
    refusal(cbor.decode, payload, LIMIT)


@settings(max_examples=300)
@given(values, st.data())
def test_a_damaged_payload_is_decoded_or_refused(value: object, data: st.DataObject) -> None:
    payload = bytearray(cbor.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    refusal(cbor.decode, bytes(payload), LIMIT)


@given(values, st.data())
def test_a_truncated_or_extended_payload_is_refused(value: object, data: st.DataObject) -> None:
    payload = cbor.encode(value)
    with pytest.raises(MessageError):
        cbor.decode(payload[: data.draw(st.integers(0, len(payload) - 1))], LIMIT)
    with pytest.raises(MessageError):
        cbor.decode(payload + data.draw(st.binary(min_size=1, max_size=9)), LIMIT)


@given(st.integers(0, 2**64 - 1))
def test_only_the_typed_arrays_tags_are_accepted(tag: int) -> None:
    payload = cbor2.dumps(cbor2.CBORTag(tag, 0))
    with pytest.raises(MessageError) as refusal:
        cbor.decode(payload, LIMIT)
    if tag not in (40, 70, 72, 84, 85, 86):
        assert f"tag {tag}" in str(refusal.value)


def _nested(depth: int) -> bytes:
    return b"\x81" * depth + b"\x00"


HOSTILE = {
    "a million nested lists": _nested(1_000_000),
    "a map of 2^64 - 1 entries": b"\xbb" + b"\xff" * 8,
    "a list of 2^64 - 1 items": b"\x9b" + b"\xff" * 8,
    "bytes of 2^64 - 1": b"\x5b" + b"\xff" * 8,
    "a text of 2^63": b"\x7b\x80" + b"\x00" * 7,
    "100,000 small items": b"\x9a\x00\x01\x86\xa0" + b"\x00" * 100_000,
    "an indefinite list": b"\x9f\x00\xff",
    "an indefinite text": b"\x7f\x61a\xff",
    "a bare break": b"\xff",
    "a regular expression": cbor2.dumps(cbor2.CBORTag(35, "(a+)+$")),
    "a bignum": cbor2.dumps(2**5000),
    "a big float": cbor2.dumps(cbor2.CBORTag(5, [10**9, 3])),
    "a shared reference": b"\xd8\x1c\x81\xd8\x1d\x00",
    "a text that is not UTF-8": b"\x62\xff\xfe",
    "an array of a shape too large": cbor2.dumps(cbor2.CBORTag(40, [[2**40, 2**40], cbor2.CBORTag(85, b"\0" * 8)])),
    "an array of a negative length": cbor2.dumps(cbor2.CBORTag(40, [[-2, -1], cbor2.CBORTag(85, b"\0" * 8)])),
    "an array of a length that is true": cbor2.dumps(cbor2.CBORTag(40, [[True, 2], cbor2.CBORTag(85, b"\0" * 8)])),
    "an array of odd bytes": cbor2.dumps(cbor2.CBORTag(40, [[1], cbor2.CBORTag(85, b"\0" * 7)])),
    "an array of rank 9": cbor2.dumps(cbor2.CBORTag(40, [[1] * 9, cbor2.CBORTag(85, b"\0" * 4)])),
    "a typed array without its shape": cbor2.dumps(cbor2.CBORTag(85, b"\0" * 4)),
    "an array of texts": cbor2.dumps(cbor2.CBORTag(40, [[1], ["a"]])),
    "an empty payload": b"",
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_payload_is_refused_at_once(payload: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(MessageError):
        cbor.decode(payload, LIMIT)
    assert time.monotonic() - started < 0.5


def test_the_largest_payload_the_bounds_allow_is_decoded_in_bounded_time() -> None:
    payload = cbor.encode({str(number): number for number in range((cbor.MAX_ITEMS - 1) // 2)})
    started = time.monotonic()
    assert len(cbor.decode(payload, LIMIT)) == (cbor.MAX_ITEMS - 1) // 2
    assert time.monotonic() - started < 2


def test_size_is_checked_before_anything_else() -> None:
    with pytest.raises(MessageError, match="11 bytes is over the limit of 10"):
        cbor.decode(b"\xff" * 11, 10)


def test_a_decoded_array_shares_the_payloads_memory_and_is_read_only() -> None:
    array = cbor.decode(cbor.encode({"a": np.arange(4, dtype=np.float32)}), LIMIT)["a"]
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_an_array_of_another_dtype_has_no_place_on_the_wire() -> None:
    with pytest.raises(TypeError, match="int64"):
        cbor.encode(np.zeros(2, np.int64))


def test_numpy_numbers_become_plain_ones() -> None:
    assert cbor.decode(cbor.encode([np.float32(0.5), np.int64(7), np.bool_(True)]), LIMIT) == [0.5, 7, True]


def test_the_form_of_an_array_is_rfc_8746() -> None:
    payload = cbor.encode(np.array([[1, 2]], np.float32))
    assert payload == bytes.fromhex("d82882820102d8554800 00803f00000040".replace(" ", ""))
