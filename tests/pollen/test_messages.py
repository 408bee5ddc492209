"""Every message comes back as it was sent; whatever else comes in is refused as MessageError, and soon."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollen import cbor, messages
from pollen.errors import MessageError
from pollen.messages import (
    GRAPH_KINDS,
    Birth,
    Death,
    Head,
    Inference,
    Receipt,
    Result,
    Session,
    Snapshot,
    Task,
    Update,
    Vitals,
)
from tests.pollen.refusals import refusal

whole = st.integers(0, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
short = st.text(max_size=40)
task_ids = st.binary(min_size=16, max_size=16)
digests = st.binary(min_size=32, max_size=32)
sessions = st.builds(Session, st.binary(min_size=8, max_size=8), whole)
metrics = st.dictionaries(short, finite, max_size=4)
scalars = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), finite, short)
texts = st.lists(short, max_size=3).map(tuple)
tensors = st.dictionaries(
    short, st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(lambda v: np.array(v, np.float32)), max_size=3
)

births = st.builds(Birth, sessions, short, short, short, short, whole, whole, texts, texts)
deaths = st.builds(Death, sessions, short)
tasks = st.builds(
    Task,
    task_ids,
    st.sampled_from(["train", "evaluate", "query"]),
    short,
    whole,
    digests,
    st.dictionaries(short, scalars, max_size=4),
    st.floats(0, 1e9),
)
updates = st.builds(Update, task_ids, whole, whole, whole, whole, tensors, metrics, st.none() | st.just(b"") | task_ids)
results = st.builds(Result, task_ids, whole, metrics, short)
receipts = st.builds(
    Receipt,
    task_ids,
    whole,
    st.sampled_from(["merged", "accepted", "duplicate", "rejected"]),
    whole,
    finite,
    whole,
    short,
)
vitals = st.builds(Vitals, metrics)
heads = st.builds(Head, short, whole, digests, digests, whole, finite)
snapshots = st.builds(Snapshot, short, whole, digests, tensors)
inferences = st.builds(
    lambda graph, *fields: Inference(*fields[:4], hashlib.sha256(graph).digest(), graph, fields[4]),
    st.binary(max_size=40),
    short,
    whole,
    st.sampled_from(GRAPH_KINDS),
    digests,
    metrics,
)

LIMIT = 10**6
DECODERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]] = {
    "birth": (births, messages.decode_state),
    "death": (deaths, messages.decode_state),
    "task": (tasks, messages.decode_task),
    "update": (updates, lambda payload: messages.decode_update(payload, LIMIT)),
    "result": (results, messages.decode_result),
    "receipt": (receipts, messages.decode_receipt),
    "vitals": (vitals, messages.decode_vitals),
    "head": (heads, messages.decode_head),
    "snapshot": (snapshots, lambda payload: messages.decode_snapshot(payload, LIMIT)),
    "inference": (inferences, lambda payload: messages.decode_inference(payload, LIMIT)),
}
every_kind = pytest.mark.parametrize("kind", DECODERS)


def plain(message: Any) -> dict[str, Any]:
    """A message's fields, arrays as bytes, so that they compare."""
    fields = {name: getattr(message, name) for name in type(message).__slots__}
    for name in ("delta", "weights"):
        if name in fields:
            fields[name] = {key: (array.dtype, array.tobytes()) for key, array in fields[name].items()}
    return fields


@every_kind
def test_a_message_comes_back_as_it_was_sent(kind: str) -> None:
    strategy, decode = DECODERS[kind]

    @given(strategy)
    def check(message: Any) -> None:
        decoded = decode(messages.encode(message))
        assert type(decoded) is type(message)
        assert plain(decoded) == plain(message)

    check()


@every_kind
def test_unknown_keys_are_ignored_and_an_unknown_version_is_refused(kind: str) -> None:
    strategy, decode = DECODERS[kind]

    @settings(max_examples=20)
    @given(strategy, st.dictionaries(st.text(min_size=41, max_size=50), scalars, max_size=3))
    def check(message: Any, more: dict[str, Any]) -> None:
        content = cbor.decode(messages.encode(message), LIMIT)
        assert plain(decode(cbor.encode(content | more))) == plain(message)
        for version in (0, 2, "1", None):
            with pytest.raises(MessageError, match="message version"):
                decode(cbor.encode(content | {"v": version}))

    check()


def _decode_quickly(decode: Callable[[bytes], Any], payload: bytes) -> None:
    started = time.monotonic()
    refusal(decode, payload)
    assert time.monotonic() - started < 1


@every_kind
def test_random_bytes_truncations_and_damage_never_raise_anything_else(kind: str) -> None:
    strategy, decode = DECODERS[kind]

    @settings(max_examples=100)
    @given(strategy, st.binary(max_size=100), st.data())
    def check(message: Any, noise: bytes, data: st.DataObject) -> None:
        payload = messages.encode(message)
        _decode_quickly(decode, noise)
        _decode_quickly(decode, payload[: data.draw(st.integers(0, len(payload)))])
        damaged = bytearray(payload)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        _decode_quickly(decode, bytes(damaged))
        # A message of another kind is read as this one.
        _decode_quickly(decode, messages.encode(data.draw(st.one_of(*(other for other, _ in DECODERS.values())))))

    check()


wrong = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=30),
        st.text(min_size=1025, max_size=1030),
        st.binary(max_size=40),
        st.just(np.zeros((2, 0), np.float16)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=5,
)


@every_kind
def test_a_field_of_any_other_type_or_missing_never_raises_anything_else(kind: str) -> None:
    strategy, decode = DECODERS[kind]

    @settings(max_examples=150)
    @given(strategy, wrong, st.data())
    def check(message: Any, value: Any, data: st.DataObject) -> None:
        content = cbor.decode(messages.encode(message), LIMIT)
        name = data.draw(st.sampled_from(sorted(content)))
        _decode_quickly(decode, cbor.encode(content | {name: value}))
        del content[name]
        _decode_quickly(decode, cbor.encode(content))

    check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": b"short"}, "field 'task' must be 16 bytes"),
        ({"seq": -1}, "field 'seq' must be a whole number"),
        ({"seq": True}, "field 'seq' must be a whole number"),
        ({"base": 2**63}, "field 'base' must be a whole number"),
        ({"n": 1.0}, "field 'n' must be a whole number"),
        ({"metrics": {"loss": float("nan")}}, "field 'metrics' must be a map of finite numbers"),
        ({"metrics": {1: 1.0}}, "field 'metrics' must be a map with text keys"),
        ({"metrics": {str(n): 1.0 for n in range(300)}}, "field 'metrics' must be a map of at most 64 entries"),
    ],
)
def test_the_refusal_of_an_update_names_the_field(change: dict[str, Any], says: str) -> None:
    update = Update(b"t" * 16, 1, 2, 3, 4, {}, {})
    content = cbor.decode(messages.encode(update), LIMIT) | change
    with pytest.raises(MessageError, match=says):
        messages.decode_update(cbor.encode(content), LIMIT)


@pytest.mark.parametrize("name", ["task", "seq", "base", "n", "steps", "delta"])
def test_an_update_without_a_field_it_needs_is_refused(name: str) -> None:
    content = cbor.decode(messages.encode(Update(b"t" * 16, 1, 2, 3, 4, {}, {})), LIMIT)
    del content[name]
    with pytest.raises(MessageError, match=f"field '{name}' is missing"):
        messages.decode_update(cbor.encode(content), LIMIT)


def test_a_payload_that_is_no_map_is_refused() -> None:
    with pytest.raises(MessageError, match="receipt: a message must be a map"):
        messages.decode_receipt(cbor.encode([1, 2]))


def test_a_small_message_has_a_small_limit() -> None:
    huge = messages.encode(Vitals({"x" * 70_000: 1.0}))
    with pytest.raises(MessageError, match="over the limit of 65536"):
        messages.decode_vitals(huge)


def test_metrics_that_are_not_finite_are_left_out() -> None:
    given_ = {"a": 1, "b": float("nan"), "c": float("-inf"), "d": 0.5}
    assert messages.finite_metrics(given_) == {"a": 1.0, "d": 0.5}
