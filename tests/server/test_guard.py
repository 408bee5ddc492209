"""The admission guard by itself: what it refuses, what it clips, and that no device moves its bounds alone."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollen import cbor
from pollen.bundle import Tensor
from pollen.encoding import decode_into, named
from pollen.errors import MessageError
from server.guard import MAX_DELTA, Admitted, Arrival, Guard, RefusedError
from server.guards import GuardSettings
from server.guards.norms import PER_DEVICE
from server.model import GlobalModel

SIZE = 8
TENSORS = (Tensor("a", (2, 3)), Tensor("b", (2,)))
OPEN = GuardSettings(warm_up=1, norm_factor=10.0)


def arrival(device: str = "pi-1", wire: Any = None, **changes: Any) -> Arrival:
    """An update of `device`, of zeros unless its tensors are given as they come over the network."""
    sent = named(np.zeros(SIZE, np.float32), TENSORS) if wire is None else wire
    fields = {
        "device": device,
        "node": 2,
        "task": b"t" * 16,
        "samples": 10,
        "write_delta": lambda out: decode_into(out, sent, TENSORS),
    }
    return Arrival(**(fields | changes))


def model() -> GlobalModel:
    made = GlobalModel(TENSORS, np.zeros(SIZE, np.float32))
    made.publish()
    return made


def pointing(length: float, angle: float = 0.0) -> np.ndarray:
    """A delta of so much length, turned by `angle` radians in the first plane."""
    delta = np.zeros(SIZE, np.float32)
    delta[:2] = length * math.cos(angle), length * math.sin(angle)
    return delta


def judge(guard: Guard, length: float, device: str = "pi-1", angle: float = 0.0) -> Admitted:
    return guard.judge(arrival(device), pointing(length, angle))


def fleet(guard: Guard, length: float = 1.0, devices: int = 5, times: int = 4, angle: float = 0.0) -> None:
    """Honest devices, each in its turn."""
    for _ in range(times):
        for number in range(devices):
            judge(guard, length, f"honest-{number}", angle)


def bound(settings: GuardSettings, *senders: tuple[str, float]) -> float:
    """To what length a huge delta is cut after these updates."""
    guard = Guard(settings)
    for device, length in senders:
        judge(guard, length, device)
    admitted = judge(guard, 1e9, "probe")
    return admitted.norm * admitted.factor


def refusal_of(call: Callable[[], Any]) -> RefusedError | None:
    try:
        call()
    except RefusedError as refusal:
        return refusal
    return None


def reason(kind: str, guard: Guard, update: Arrival) -> str:
    with pytest.raises(RefusedError) as refusal:
        guard.read(update, model(), np.empty(SIZE, np.float32))
    assert refusal.value.kind == kind
    return str(refusal.value)


# --- form


def wire(**changes: Any) -> dict[str, Any]:
    sound = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}
    return {name: value for name, value in (sound | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("kind", "sent", "says"),
    [
        ("names", wire(b=None), "1 tensors, the model has 2"),
        ("names", wire(c=np.ones(1, np.float32)), "unknown: ['c']"),
        ("names", wire(b=None, c=np.ones(2, np.float32)), "lacks tensor 'b'"),
        ("names", [1, 2], "map of named tensors"),
        ("shapes", wire(b=np.ones(3, np.float32)), "'b' has shape (3,)"),
        ("shapes", wire(a=np.ones((3, 2), np.float32)), "'a' has shape (3, 2)"),
        ("shapes", wire(a=np.ones(6, np.float32)), "'a' has shape (6,)"),
        ("dtype", wire(b=np.ones(2)), "'b': expected"),
        ("dtype", wire(b=np.ones(2, np.int8)), "'b': expected"),
        ("dtype", wire(b={"scale": 1, "q": np.ones(2, np.int8)}), "'b': q8 needs"),
        ("dtype", wire(b="text"), "'b': expected"),
        ("not-finite", wire(b=np.array([1, np.nan], np.float32)), "not finite"),
        ("not-finite", wire(b=np.array([1, np.inf], np.float16)), "not finite"),
        ("not-finite", wire(b={"scale": 1e308, "q": np.ones(2, np.int8)}), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_kind(kind: str, sent: Any, says: str) -> None:
    assert says in reason(kind, Guard(), arrival(wire=sent))


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("samples", {"samples": 0}, "needs 1 to"),
        ("samples", {"samples": -3}, "n = -3"),
        ("samples", {"samples": 10**9}, "needs 1 to 100000000"),
        ("base", {"base": 1}, "never issued"),
        ("base", {"base": -1}, "never issued"),
        ("failed", {"write_delta": None}, "no update"),
        ("failed", {"error": "model does not load"}, "model does not load"),
        ("size", {"error": "too many bytes", "kind": "size", "write_delta": None}, "too many bytes"),
    ],
)
def test_an_update_without_what_a_merge_needs_is_refused_by_kind(kind: str, changes: Any, says: str) -> None:
    assert says in reason(kind, Guard(), arrival(**changes))


def test_a_decoder_that_breaks_costs_the_sender_its_update_and_nobody_else() -> None:
    def broken(_out: np.ndarray) -> None:
        raise ZeroDivisionError

    assert "could not be decoded" in reason("unreadable", Guard(), arrival(write_delta=broken))


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=SIZE, max_size=SIZE))
def test_whatever_is_admitted_is_finite_and_within_bounds(numbers: list[float]) -> None:
    guard, out = Guard(OPEN), np.empty(SIZE, np.float32)
    fleet(guard)
    update = arrival(wire=named(np.array(numbers, np.float32), TENSORS))
    refusal = refusal_of(lambda: guard.read(update, model(), out)) or refusal_of(lambda: guard.judge(update, out))
    if refusal is None:
        assert np.isfinite(out).all()
        assert float(np.linalg.norm(out.astype(np.float64))) <= 10.0 * (1 + 1e-5)
    else:
        assert refusal.kind == ("magnitude" if np.isfinite(numbers).all() else "not-finite")
        assert not float(np.max(np.abs(numbers))) <= MAX_DELTA


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.binary(), st.lists, max_leaves=5))
def test_no_tensor_value_breaks_the_guard(value: Any) -> None:
    with pytest.raises(RefusedError):
        Guard().read(arrival(wire={"a": value, "b": value}), model(), np.empty(SIZE, np.float32))


def test_an_errors_kind_is_unreadable_unless_it_says_more() -> None:
    assert MessageError("x").kind == "unreadable"


# --- norms


def test_a_boosted_update_keeps_its_direction_and_is_cut_to_the_bound() -> None:
    guard = Guard(OPEN)
    fleet(guard, 2.0)
    delta = pointing(5000.0, angle=1.0)
    admitted = guard.judge(arrival("booster"), delta)
    assert (admitted.norm, admitted.factor) == (pytest.approx(5000.0), pytest.approx(20.0 / 5000.0))
    np.testing.assert_allclose(delta, pointing(20.0, angle=1.0), rtol=1e-5)
    assert admitted.remark == "clipped: norm of 5000, the bound is 20 (10 running medians)"
    assert admitted.metrics == {"clipped": admitted.factor}


def test_a_boosted_update_is_refused_where_the_settings_say_so() -> None:
    guard = Guard(GuardSettings(norm="refuse", warm_up=1))
    fleet(guard)
    with pytest.raises(RefusedError, match=r"norm of 11, the bound is 10") as refusal:
        judge(guard, 11.0, "booster")
    assert refusal.value.kind == "norm"
    assert judge(guard, 9.9, "booster").factor == 1.0


def test_without_a_bound_every_finite_norm_is_admitted() -> None:
    guard = Guard(GuardSettings(norm="off", warm_up=1))
    fleet(guard)
    assert judge(guard, 1e6).factor == 1.0


def test_nothing_is_judged_before_the_warm_up_nor_in_a_fleet_without_a_majority() -> None:
    guard = Guard(GuardSettings(warm_up=4))
    for device in ("a", "b", "c", "a"):
        assert judge(guard, 1e4 if device == "c" else 1.0, device).factor == 1.0
    assert judge(guard, 1e4, "b").factor < 1.0
    pair = Guard(OPEN)
    for number in range(50):
        assert judge(pair, 1e4 if number == 40 else 1.0, f"pi-{number % 2}").factor == 1.0


@pytest.mark.parametrize("length", [1e-6, 9.0, 1e9])
def test_a_device_that_floods_moves_the_bound_no_more_than_by_one_voice(length: float) -> None:
    """Ten times as often, or a thousand times: the median stays among the honest ones."""
    honest = [(f"honest-{number}", 1.0 + number / 10) for number in range(5)]
    once = bound(OPEN, *honest, ("flood", length))
    flooded = bound(OPEN, *honest, *[("flood", length)] * 10, *honest, *[("flood", length)] * 1000)
    assert flooded == once
    assert 10.0 <= flooded <= 14.0


@given(st.lists(st.tuples(st.sampled_from(["bad-1", "bad-2"]), st.floats(1e-9, 1e9)), max_size=60))
@settings(deadline=None)
def test_a_minority_can_not_push_the_bound_out_of_the_honest_range(hostile: list[tuple[str, float]]) -> None:
    honest = [(f"honest-{number}", 1.0 + number / 10) for number in range(3)]
    assert 10.0 * (1 - 1e-6) <= bound(OPEN, *honest, *hostile) <= 12.0 * (1 + 1e-6)


def test_the_bound_follows_a_fleet_whose_updates_all_grow_even_where_it_refuses() -> None:
    guard = Guard(GuardSettings(norm="refuse", warm_up=1))
    fleet(guard, 1.0, times=PER_DEVICE)
    with pytest.raises(RefusedError):
        judge(guard, 50.0, "honest-0")
    refusals = [refusal_of(lambda n=number: judge(guard, 50.0, f"honest-{n % 5}")) for number in range(5 * PER_DEVICE)]
    assert {refusal.kind for refusal in refusals if refusal} == {"norm"}
    assert judge(guard, 50.0, "honest-0").factor == 1.0


def test_an_update_of_zeros_is_admitted_and_says_nothing_of_norms() -> None:
    guard = Guard(OPEN)
    fleet(guard)
    for number in range(40):
        assert guard.judge(arrival(f"honest-{number % 5}"), pointing(0.0)) == Admitted(0.0)
    assert judge(guard, 9.0).factor == 1.0


def test_only_the_devices_that_sent_last_are_remembered() -> None:
    guard = Guard(GuardSettings(norm_window=4, warm_up=1))
    fleet(guard, 100.0, devices=10, times=1)
    fleet(guard, 1.0, devices=4, times=1)
    kept = guard.drain()
    assert [name for name, value in kept.items() if value is not None] == [
        f"guard/norm/delta/honest-{number}" for number in range(4)
    ]
    # Four devices, each with an old norm that it has forgotten with its place, and its new one.
    assert judge(guard, 1e9).factor == pytest.approx(10.0 / 1e9)


def test_a_residual_beyond_the_bound_is_refused_since_a_part_of_it_would_be_lost() -> None:
    guard = Guard(OPEN)
    for number in range(20):
        guard.judge(arrival(f"pi-{number % 5}", against=b"x" * 16), pointing(1.0))
    with pytest.raises(RefusedError) as refusal:
        guard.judge(arrival("pi-1", against=b"x" * 16), pointing(11.0))
    assert refusal.value.kind == "norm"
    # The first one of a device is measured against the model it started from: another length altogether.
    assert guard.judge(arrival("pi-9", against=b""), pointing(500.0)).factor == 1.0


# --- directions

FACING = GuardSettings(norm="off", warm_up=5, cosine_least=0.0)


def test_a_sign_flipped_update_is_refused_and_leaves_the_average_alone() -> None:
    guard = Guard(FACING)
    fleet(guard, angle=0.3)
    for _ in range(50):
        with pytest.raises(RefusedError, match=r"cosine of -1\.000") as refusal:
            judge(guard, 1.0, "flipper", angle=0.3 + math.pi)
        assert refusal.value.kind == "cosine"
    assert judge(guard, 3.0, "honest-1", angle=0.3).cosine == pytest.approx(1.0)


def test_the_score_is_the_cosine_with_the_average_of_directions_not_of_lengths() -> None:
    """Worked out by hand: e = s d1 first, then (1 - s) s d1 + s d2, of unit vectors at 0 and 60 degrees."""
    guard = Guard(GuardSettings(norm="off", cosine_least=-0.5, cosine_step=0.5))
    assert judge(guard, 100.0, "a").cosine is None
    second = judge(guard, 0.01, "b", angle=math.pi / 3)
    assert second.cosine == pytest.approx(0.5)
    assert second.metrics == {"cosine": second.cosine}
    e = 0.25 * np.array([1.0, 0.0]) + 0.5 * np.array([0.5, math.sqrt(0.75)])
    third = judge(guard, 5.0, "c", angle=math.pi / 2).cosine
    assert third == pytest.approx(e[1] / np.hypot(*e), abs=1e-6)


def test_a_device_that_sends_ten_times_as_often_does_not_turn_the_average() -> None:
    def average_angle(often: int) -> float:
        guard = Guard(GuardSettings(norm="off", warm_up=1000, cosine_least=-0.99))
        for _ in range(100):
            fleet(guard, times=1)
            for _ in range(often):
                judge(guard, 1.0, "flood", angle=math.pi / 2)
        (average,) = (value for name, value in guard.drain().items() if "direction" in name)
        return math.atan2(average[1], average[0])

    assert average_angle(10) < 2.5 * average_angle(1) < math.pi / 4


# --- rate


def test_a_device_beyond_its_rate_is_refused_until_time_has_passed_and_others_are_not() -> None:
    guard, out, clock = Guard(GuardSettings(updates_per_minute=6.0, burst=3)), np.empty(SIZE, np.float32), 1000.0

    def sends(device: str, now_s: float) -> bool:
        refusal = refusal_of(lambda: guard.read(arrival(device), model(), out, now_s))
        assert refusal is None or (refusal.kind, str(refusal)) == ("rate", "more than 6 updates a minute")
        return refusal is None

    assert [sends("flood", clock) for _ in range(5)] == [True, True, True, False, False]
    assert sends("other", clock)
    assert [sends("flood", clock + 10.0) for _ in range(2)] == [True, False]
    # A clock that begins again after a reboot: from there on as before.
    assert [sends("flood", 1.0), sends("flood", 10.9), sends("flood", 11.1)] == [False, False, True]
    assert sum(sends("flood", 20.0 + second) for second in range(600)) in range(59, 63)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50))
def test_no_pattern_of_times_lets_more_through_than_rate_and_burst(gaps: list[float]) -> None:
    guard, out = Guard(GuardSettings(updates_per_minute=2.0, burst=4)), np.empty(SIZE, np.float32)
    times = list(itertools.accumulate(gaps))
    refusals = [refusal_of(lambda now=now: guard.read(arrival(), model(), out, now)) for now in times]
    assert refusals.count(None) <= 4 + (times[-1] - times[0]) * 2.0 / 60.0 + 1e-6


# --- memory

EVERYTHING = GuardSettings(
    updates_per_minute=30.0, burst=5, norm_window=4, norm_factor=3.0, warm_up=5, cosine_least=-0.2
)
updates = st.tuples(st.integers(0, 5), st.floats(1e-3, 1e3), st.floats(-4.0, 4.0))


@given(st.lists(updates, min_size=1, max_size=60), st.sets(st.integers(0, 59)))
@settings(deadline=None)
def test_a_restart_anywhere_changes_no_bit_of_what_follows(
    sent: list[tuple[int, float, float]], restarts: set[int]
) -> None:
    def run(restarts: set[int]) -> list[Any]:
        guard, out, store, seen = Guard(EVERYTHING), np.empty(SIZE, np.float32), dict[str, Any](), list[Any]()
        for number, (device, length, angle) in enumerate(sent):
            if number in restarts:
                guard = Guard(EVERYTHING)
                guard.restore(store)
            update = arrival(f"pi-{device}", wire=named(pointing(length, angle), TENSORS))
            try:
                guard.read(update, model(), out, number / 2)
                seen.append((guard.judge(update, out), out.tobytes()))
            except RefusedError as refusal:
                seen.append((refusal.kind, str(refusal)))
            for name, value in guard.drain().items():
                payload = cbor.encode(value)
                store[name] = cbor.decode(payload, len(payload))
                if value is None:
                    del store[name]
        return [seen, sorted((name, cbor.encode(value)) for name, value in store.items())]

    assert run(restarts) == run(set())
