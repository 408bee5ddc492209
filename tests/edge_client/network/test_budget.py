"""The day's bytes: a rolling window on a clock that never jumps, which no restart refills."""

import threading
from pathlib import Path

import pytest

from edge_client.network.budget import HOUR_S, MESSAGE_BYTES, REPLIES_SHARE, Budget, interface_of
from pollen import cbor
from tests.edge_client.clock import VirtualClock

LIMIT = 100_000


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sent_today"


def pass_by(clock: VirtualClock, hours: float) -> None:
    clock.wait(threading.Event(), hours * HOUR_S)


def test_without_a_limit_everything_is_allowed_and_nothing_written(file: Path, clock: VirtualClock) -> None:
    budget = Budget(0, file, clock)
    budget.spend(10**9)
    budget.save()
    assert budget.allows(10**9)
    assert budget.vitals_s(1000) == 0
    assert not file.exists()


def test_what_was_sent_counts_with_its_headers_for_24_to_25_hours(file: Path, clock: VirtualClock) -> None:
    budget = Budget(LIMIT, file, clock)
    pass_by(clock, 0.5)
    budget.spend(60_000)
    assert budget.left == LIMIT - 60_000 - MESSAGE_BYTES
    assert budget.allows(budget.left - MESSAGE_BYTES)
    assert not budget.allows(budget.left - MESSAGE_BYTES + 1)
    pass_by(clock, 12)
    budget.spend(30_000)
    pass_by(clock, 12)
    assert budget.spent == 90_000 + 2 * MESSAGE_BYTES
    pass_by(clock, 0.5)
    assert budget.spent == 30_000 + MESSAGE_BYTES
    pass_by(clock, 1000)
    assert budget.spent == 0


def test_updates_leave_something_for_births(file: Path, clock: VirtualClock) -> None:
    budget = Budget(LIMIT, file, clock)
    budget.spend(94_000)
    assert not budget.allows(1000, REPLIES_SHARE)
    assert budget.allows(1000)
    assert not budget.ever_allows(95_000, REPLIES_SHARE)
    assert budget.ever_allows(94_900, REPLIES_SHARE)


def test_a_days_vitals_take_a_tenth(file: Path, clock: VirtualClock) -> None:
    every = Budget(LIMIT, file, clock).vitals_s(900)
    assert 24 * HOUR_S / every * (900 + MESSAGE_BYTES) == pytest.approx(LIMIT / 10)


def test_a_restart_gives_nothing_back(file: Path, clock: VirtualClock) -> None:
    budget = Budget(LIMIT, file, clock)
    budget.spend(50_000)
    pass_by(clock, 20)
    budget.save()
    later = VirtualClock()  # another boot: its monotonic clock begins elsewhere
    later.now = 3.0
    again = Budget(LIMIT, file, later)
    assert again.spent == budget.spent
    pass_by(later, 3)
    assert again.spent == budget.spent
    pass_by(later, 2.1)
    assert again.spent == 0


def test_a_kill_makes_at_most_a_fiftieth_of_the_budget_forgotten(file: Path, clock: VirtualClock) -> None:
    budget = Budget(LIMIT, file, clock)
    for _ in range(50):
        budget.spend(900)
        assert Budget(LIMIT, file, clock).spent > budget.spent - LIMIT / 50


def test_a_wall_clock_that_jumps_changes_nothing(file: Path, clock: VirtualClock) -> None:
    budget = Budget(LIMIT, file, clock)
    budget.spend(50_000)
    for years in (10, -20, 10):
        clock.wall_now += years * 365 * 24 * HOUR_S
        assert budget.spent == 50_000 + MESSAGE_BYTES


def test_a_lower_limit_counts_what_was_sent_under_the_higher_one(file: Path, clock: VirtualClock) -> None:
    Budget(LIMIT, file, clock).spend(50_000)
    budget = Budget(10_000, file, clock)
    assert budget.left < 0
    assert not budget.allows(0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 10_000,
        cbor.encode([1, 2]),
        cbor.encode({"hours": 3, "age_s": 0.0}),
        cbor.encode({"hours": [], "age_s": 0.0}),
        cbor.encode({"hours": [-1], "age_s": 0.0}),
        cbor.encode({"hours": [1] * 26, "age_s": 0.0}),
        cbor.encode({"hours": [1], "age_s": float("nan")}),
        cbor.encode({"hours": [1], "age_s": -1.0}),
        cbor.encode({"hours": [1]}),
    ],
)
def test_a_damaged_file_is_not_used_and_stops_nothing(file: Path, clock: VirtualClock, content: bytes) -> None:
    file.write_bytes(content)
    assert Budget(LIMIT, file, clock).spent == 0


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path, clock: VirtualClock) -> None:
    (tmp_path / "file").touch()
    budget = Budget(LIMIT, tmp_path / "file" / "sent_today", clock)
    budget.spend(50_000)
    assert budget.spent == 50_000 + MESSAGE_BYTES


def test_an_interface_is_known_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") == ""
    assert interface_of("") == ""
