"""The frames between gateway and server: round trips and hostile peers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollen import bridge, cbor
from pollen.bridge import Accepted, DeviceState, DeviceVitals, Frame, Hello, ModelMessage, ToDevice, Upload
from pollen.errors import MessageError
from tests.pollen.refusals import refusal

short = st.text(max_size=20)
payloads = st.binary(max_size=200)
whole = st.integers(0, 2**63 - 1)
frames = st.one_of(
    st.builds(Hello, short, short, short, whole),
    st.builds(DeviceState, short, payloads),
    st.builds(Upload, whole, short, short, payloads),
    st.builds(DeviceVitals, short, payloads),
    st.builds(Accepted, st.lists(whole, max_size=5).map(tuple)),
    st.builds(ToDevice, short, short, payloads, whole),
    st.builds(ModelMessage, short, short, payloads),
)


@given(st.lists(frames, max_size=6))
def test_frames_come_back_in_order(sent: list[Frame]) -> None:
    assert bridge.decode(bridge.encode(sent)) == sent


def test_a_message_as_full_as_a_peer_may_send_is_decoded() -> None:
    batch: list[Frame] = [Upload(number, "pi", "update", b"") for number in range(bridge.BATCH_FRAMES)]
    assert bridge.decode(bridge.encode(batch)) == batch


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "must be a list of frames"),
        ([7], "unknown kind"),
        ([[]], "unknown kind"),
        ([["shout", 1]], "unknown kind"),
        ([[None]], "unknown kind"),
        ([[["hello"]]], "unknown kind"),
        ([[{"hello": 1}]], "unknown kind"),
        ([[np.zeros(2, np.float32)]], "unknown kind"),
        ([["hello", "a", "b"]], "has 2 fields, expected 4"),
        ([["accepted", [1, "2"]]], "'deliveries' of a accepted frame has the wrong type"),
        ([["accepted", [True]]], "'deliveries'"),
        ([["accepted", 5]], "'deliveries'"),
        ([["upload", "1", "pi", "update", b""]], "'delivery'"),
        ([["upload", 1, "pi", "update", "text"]], "'payload'"),
        ([["upload", True, "pi", "update", b""]], "'delivery'"),
        ([["hello", "a", "b", "c", 1.0]], "'protocol'"),
    ],
)
def test_what_is_no_frame_is_refused(value: Any, says: str) -> None:
    with pytest.raises(MessageError) as refusal:
        bridge.decode(cbor.encode(value))
    assert says in str(refusal.value)


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(0, 9),
        st.floats(),
        st.sampled_from(["hello", "upload", "accepted", "device", "model", "state", "vitals", "x"]),
        st.binary(max_size=3),
        st.just(np.zeros(2, np.int8)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=15,
)


@settings(max_examples=500)
@given(st.lists(anything, max_size=4))
def test_no_value_raises_anything_but_message_error(value: Any) -> None:
    refusal(bridge.decode, cbor.encode(value))


@settings(max_examples=300)
@given(st.lists(frames, max_size=4), st.binary(max_size=60), st.data())
def test_damaged_bytes_raise_nothing_but_message_error(sent: list[Frame], noise: bytes, data: st.DataObject) -> None:
    damaged = bytearray(bridge.encode(sent))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for payload in (noise, bytes(damaged), bytes(damaged[: data.draw(st.integers(0, len(damaged)))])):
        refusal(bridge.decode, payload)
