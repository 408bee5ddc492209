"""A device that is cut off while the model moves on is merged when it returns, as stale as it really is."""

import time
from collections.abc import Callable

import pytest

from pollen.demo.network_cut import NetworkCut
from tests.system.whole import Whole, read

AWAY = "pi-3"
PRESENT = ("pi-1", "pi-2")
MISSED = 25


def cut_while_learning(whole: Whole, cable: NetworkCut) -> tuple[int, int]:
    """Cut the device off so that it learns something offline; returns that update's (base, seq).

    A device that has just handed its update over has no task left to learn for: then it comes back, and we try again.
    """
    for _ in range(20):
        cable.cut()
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            rows = read(whole.folder / AWAY / "outbox.sqlite", "SELECT base, seq, handed FROM reply")
            if rows and not rows[0][2]:
                return rows[0][0], rows[0][1]
            time.sleep(0.02)
        cable.restore()
        wait_for_merge_of(whole, AWAY)
    raise AssertionError("in 20 cuts the device never had something to learn")


def merges_of(whole: Whole, device: str) -> int:
    return sum(merge["device"] == device for merge in whole.history())


def wait_for_merge_of(whole: Whole, device: str, more: int = 1) -> None:
    target = merges_of(whole, device) + more
    whole.wait_for(lambda: merges_of(whole, device) >= target, 30, f"{more} merges of {device}")


@pytest.mark.timeout(120)
def test_a_device_that_was_away_is_merged_on_its_return_with_its_true_staleness(whole: Callable[..., Whole]) -> None:
    running = whole(devices=PRESENT, others=(AWAY,))
    with NetworkCut(running.broker.port) as cable:
        running.start_device(AWAY, port=cable.port)
        wait_for_merge_of(running, AWAY, more=2)

        base, first_seq = cut_while_learning(running, cable)
        silent = merges_of(running, AWAY)
        at_cut = running.version()
        running.wait_for_merges(MISSED)
        assert merges_of(running, AWAY) == silent, "nothing came through the cut"
        ((seq, still_base),) = read(running.folder / AWAY / "outbox.sqlite", "SELECT seq, base FROM reply")
        assert still_base == base
        assert seq > first_seq, "it went on learning, and kept one update"
        cable.restore()
        wait_for_merge_of(running, AWAY, more=4)
        running.stop(*PRESENT, AWAY)
    assert read(running.folder / AWAY / "outbox.sqlite", "SELECT * FROM reply") == []

    mine = [merge for merge in running.history() if merge["device"] == AWAY]
    returned, later = mine[silent], mine[silent + 1 :]
    between = [merge for merge in running.history() if base < merge["version"] < returned["version"]]
    assert returned["staleness"] == len(between) >= MISSED
    assert returned["version"] > at_cut + MISSED
    assert returned["weight"] == pytest.approx(0.3 * (1 + returned["staleness"]) ** -0.5)
    assert returned["weight"] < min(merge["weight"] for merge in later)
    assert max(merge["staleness"] for merge in later) < MISSED
    print(f"away for {len(between)} merges: staleness {returned['staleness']}, weight {returned['weight']:.3f}")
