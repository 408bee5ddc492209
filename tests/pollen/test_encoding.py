"""Encodings of a delta: exact, rounded or quantised without bias, and nothing unfit gets through."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pollen import cbor, encoding
from pollen.bundle import Tensor
from pollen.encoding import Encoding
from tests.pollen.refusals import refusal

LIMIT = 10**6
shapes = st.lists(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1, max_size=4)


def tensors_of(shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"layer/{number}", shape) for number, shape in enumerate(shapes))


@st.composite
def deltas(draw: st.DrawFn, largest: float = float(2**100)) -> tuple[tuple[Tensor, ...], np.ndarray]:
    tensors = tensors_of(draw(shapes))
    numbers = st.floats(-largest, largest, width=32)
    return tensors, draw(npst.arrays(np.float32, encoding.parameters(tensors), elements=numbers))


def travel(
    vector: np.ndarray, tensors: tuple[Tensor, ...], kind: Encoding, seed: int = 0, share: float = 0.05
) -> np.ndarray:
    """Encode, put on the wire, take off, decode."""
    wire = cbor.encode(encoding.encode(vector, tensors, kind, random.Random(seed), share))
    out = np.full(len(vector), np.nan, np.float32)
    encoding.decode_into(out, cbor.decode(wire, LIMIT), tensors)
    return out


@given(deltas())
def test_named_views_share_the_vector_and_cover_it_once(case: tuple[tuple[Tensor, ...], np.ndarray]) -> None:
    tensors, vector = case
    views = encoding.named(vector, tensors)
    assert [view.shape for view in views.values()] == [tensor.shape for tensor in tensors]
    for view in views.values():
        view[...] += 1
    np.testing.assert_array_equal(np.concatenate([view.ravel() for view in views.values()]), vector)


@given(deltas())
def test_f32_is_exact(case: tuple[tuple[Tensor, ...], np.ndarray]) -> None:
    tensors, vector = case
    np.testing.assert_array_equal(travel(vector, tensors, "f32"), vector)


@given(deltas())
def test_f16_rounds_to_nearest_and_clips(case: tuple[tuple[Tensor, ...], np.ndarray]) -> None:
    tensors, vector = case
    np.testing.assert_array_equal(travel(vector, tensors, "f16"), np.clip(vector, -65504, 65504).astype(np.float16))


@given(deltas())
def test_q8_is_within_one_step_of_each_tensors_scale(case: tuple[tuple[Tensor, ...], np.ndarray]) -> None:
    tensors, vector = case
    decoded = encoding.named(travel(vector, tensors, "q8"), tensors)
    for name, view in encoding.named(vector, tensors).items():
        step = float(np.max(np.abs(view), initial=0)) / 127
        assert np.all(np.abs(decoded[name] - view) <= step * (1 + 1e-4) + 1e-38)


def test_q8_is_unbiased() -> None:
    """The mean of 4,000 draws is within 5 standard errors of the values; rounding to nearest would fail that."""
    values = np.linspace(-1, 1, 41, dtype=np.float32)
    tensors = (Tensor("t", (41,)),)
    draws = np.stack([travel(values, tensors, "q8", seed) for seed in range(4000)])
    error = np.abs(draws.mean(0, dtype=np.float64) - values)
    assert np.all(error <= 5 * (1 / 127) / 2 / math.sqrt(4000) + 1e-6)
    nearest = np.round(values * 127) / 127
    assert np.max(np.abs(nearest - values)) > 5 * (1 / 127) / 2 / math.sqrt(4000)


@given(deltas(), st.floats(1e-6, 1))
def test_topk_carries_the_largest_numbers_and_nothing_else(
    case: tuple[tuple[Tensor, ...], np.ndarray], share: float
) -> None:
    tensors, vector = case
    decoded = travel(vector, tensors, "topk", share=share)
    sent = decoded != 0
    count = max(1, round(share * len(vector)))
    assert np.count_nonzero(sent) == min(count, np.count_nonzero(vector))
    assert np.abs(vector[sent]).min(initial=math.inf) >= np.abs(vector[~sent]).max(initial=0)
    np.testing.assert_allclose(decoded[sent], vector[sent], rtol=2**-11, atol=0)


def test_topk_of_equal_numbers_carries_as_many_as_it_may() -> None:
    decoded = travel(np.full(40, -2, np.float32), (Tensor("t", (5, 8)),), "topk", share=0.25)
    assert np.sort(decoded).tolist() == [-2] * 10 + [0] * 30


def test_topk_takes_two_bytes_a_number_where_they_do_and_four_where_they_dont() -> None:
    tensors = tensors_of([(3,), (2,), (2,)])
    delta = np.array([0.1, 1e-3, -65504, 1e-6, 3, 70000, 1], np.float32)
    wire = encoding.encode(delta, tensors, "topk", random.Random(0), 1.0)
    assert [wire[tensor.name]["v"].dtype.name for tensor in tensors] == ["float16", "float32", "float32"]
    np.testing.assert_allclose(travel(delta, tensors, "topk", share=1.0), delta, rtol=2**-11)


def test_the_wire_form_of_topk_is_places_and_values_of_each_tensor() -> None:
    tensors = tensors_of([(2, 2), (3,)])
    wire = encoding.encode(np.array([0, 0, -8, 1, 0, 0, 0], np.float32), tensors, "topk", random.Random(0), 2 / 7)
    first = "6169 d8288281 02 d846 48 0200000003000000 6176 d8288281 02 d854 44 00c8003c"
    second = "6169 d8288281 00 d846 40 6176 d8288281 00 d854 40"
    expected = f"a2 67{b'layer/0'.hex()} a2 {first} 67{b'layer/1'.hex()} a2 {second}"
    assert cbor.encode(wire) == bytes.fromhex(expected)


@pytest.mark.parametrize("kind", encoding.ENCODINGS)
def test_zeros_stay_zeros(kind: Encoding) -> None:
    tensors = tensors_of([(3, 2), (0,), ()])
    np.testing.assert_array_equal(travel(np.zeros(7, np.float32), tensors, kind), np.zeros(7))


TENSORS = tensors_of([(2, 2), (3,)])


def _topk(places: Any, values: Any = (1, 1), dtype: Any = np.uint32) -> dict[str, Any]:
    return {"i": np.array(places, dtype), "v": np.array(values, np.float32)}


def _wire(**changes: Any) -> dict[str, Any]:
    wire: dict[str, Any] = {"layer/0": np.ones((2, 2), np.float32), "layer/1": np.ones(3, np.float32)}
    return {name: value for name, value in (wire | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ([1, 2], "must be a map"),
        ({}, "0 tensors, the model has 2"),
        (_wire(**{"layer/1": None}), "1 tensors, the model has 2"),
        (_wire(more=np.ones(1, np.float32)), "unknown: ['more']"),
        (_wire(**{"layer/1": None, "layer/9": np.ones(3, np.float32)}), "lacks tensor 'layer/1'"),
        (_wire(**{"layer/0": np.ones(4, np.float32)}), "'layer/0' has shape (4,), the model has (2, 2)"),
        (_wire(**{"layer/0": np.ones((2, 2), np.int8)}), "'layer/0': expected a float32"),
        (_wire(**{"layer/0": [[1, 1], [1, 1]]}), "'layer/0': expected a float32"),
        (_wire(**{"layer/1": {"scale": 1, "q": np.ones(3, np.int8)}}), "'layer/1': q8 needs a float scale"),
        (_wire(**{"layer/1": {"scale": 1.0, "q": np.ones(3, np.float32)}}), "'layer/1': q8 needs"),
        (_wire(**{"layer/1": {"scale": 1.0}}), "'layer/1': q8 needs"),
        (_wire(**{"layer/1": {"scale": math.nan, "q": np.ones(3, np.int8)}}), "not finite"),
        (_wire(**{"layer/1": {"scale": 1e300, "q": np.ones(3, np.int8)}}), "not finite"),
        (_wire(**{"layer/1": _topk([1, 1])}), "'layer/1': topk places must rise and lie below 3"),
        (_wire(**{"layer/1": _topk([2, 1])}), "topk places must rise"),
        (_wire(**{"layer/1": _topk([0, 3])}), "topk places must rise and lie below 3"),
        (_wire(**{"layer/1": _topk([0, 2**32 - 1])}), "topk places must rise and lie below 3"),
        (_wire(**{"layer/1": _topk([-1, 0], dtype=np.int8)}), "'layer/1': topk needs uint32 places"),
        (_wire(**{"layer/1": _topk([0, 1], dtype=np.float32)}), "topk needs uint32 places"),
        (_wire(**{"layer/1": _topk(range(4), range(4))}), "'layer/1': topk has places (4,) and values (4,)"),
        (_wire(**{"layer/1": _topk(np.zeros(10**6))}), "topk has places (1000000,) and values (2,)"),
        (_wire(**{"layer/1": _topk([0, 1], [1])}), "topk has places (2,) and values (1,)"),
        (_wire(**{"layer/1": _topk([[0, 1]], [[1, 1]])}), "topk has places (1, 2)"),
        (_wire(**{"layer/1": {"i": [0, 1], "v": np.ones(2, np.float32)}}), "topk needs uint32 places"),
        (_wire(**{"layer/1": {"i": np.zeros(0, np.uint32)}}), "topk needs uint32 places and float32"),
        (_wire(**{"layer/1": {"i": np.zeros(1, np.uint32), "v": np.ones(1, np.int8)}}), "topk needs"),
        (_wire(**{"layer/1": _topk([0, 1], [math.nan, 0])}), "not finite"),
        (_wire(**{"layer/1": np.zeros(3, np.uint32)}), "'layer/1': expected a float32"),
        (_wire(**{"layer/1": np.array([1, math.inf, 1], np.float32)}), "not finite"),
        (_wire(**{"layer/1": np.array([1, math.nan, 1], np.float16)}), "not finite"),
    ],
)
def test_an_unfit_delta_is_refused_with_the_tensors_name(wire: Any, says: str) -> None:
    assert says in refusal(encoding.decode_into, np.empty(7, np.float32), wire, TENSORS)


def test_a_refusal_is_short_however_long_the_names_are() -> None:
    hostile = {"x" * 100_000: 0, "\n" * 100_000: 0, "z" * 100_000: 0}
    assert "3 tensors, the model has 2" in refusal(encoding.decode_into, np.empty(7, np.float32), hostile, TENSORS)


anything = st.recursive(
    st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        npst.arrays(
            st.sampled_from([np.int8, np.uint32, np.float16, np.float32]),
            npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["layer/0", "layer/1", "scale", "q", "i", "v", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.one_of(anything, st.fixed_dictionaries({"layer/0": anything, "layer/1": anything})))
def test_whatever_is_no_delta_raises_nothing_but_message_error(wire: Any) -> None:
    out = np.empty(7, np.float32)
    if not refusal(encoding.decode_into, out, wire, TENSORS):
        assert np.isfinite(out).all()
