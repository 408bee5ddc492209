"""The books of the fault suite find what must never happen."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pollen import messages
from pollen.messages import Outcome, Receipt
from tests.faults.books import Books


def receipt(task: int, seq: int, version: int, outcome: Outcome = "merged") -> Receipt:
    return Receipt(bytes([task]) * 16, seq, outcome, version, weight=1.0)


def books(answers: list[tuple[int, str, Receipt]], told: tuple[tuple[str, Receipt], ...] = ()) -> Books:
    """Books with these answers, and receipts that were seen on the broker."""
    observer = SimpleNamespace(updates=Counter, receipts=lambda: Counter(told))
    whole: Any = SimpleNamespace(observer=observer, devices=("pi-1", "pi-2"), folder=Path("nowhere"))
    found = Books(whole)
    found.add([(number, device, messages.encode(one)) for number, device, one in answers])
    return found


GOOD = [(1, "pi-1", receipt(1, 1, 1)), (2, "pi-2", receipt(2, 1, 2)), (3, "pi-1", receipt(3, 2, 3))]


def test_good_books_are_good() -> None:
    found = books(GOOD, told=(("pi-2", receipt(2, 1, 2)),))
    found.check()
    assert found.count == 3
    assert found.merged() == {("pi-1", b"\1" * 16, 1), ("pi-2", b"\2" * 16, 1), ("pi-1", b"\3" * 16, 2)}
    assert found.without_merge(("pi-1", "pi-2"), after=2) == ["pi-2"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((4, "pi-1", receipt(4, 2, 4)), "update was merged twice"),
        ((4, "pi-2", receipt(1, 2, 4)), "task was merged twice"),
        ((5, "pi-2", receipt(4, 2, 5)), "answer 5 comes after 3"),
        ((4, "pi-2", receipt(4, 2, 3)), "answer 4"),
        ((4, "pi-2", receipt(4, 2, 4, "duplicate")), "answer 4"),
    ],
)
def test_bad_answers_are_found(answer: tuple[int, str, Receipt], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        books([*GOOD, answer]).check()


def test_a_receipt_that_the_store_does_not_know_is_found() -> None:
    with pytest.raises(AssertionError, match="pi-1 was told"):
        books(GOOD, told=(("pi-1", receipt(9, 1, 1)),)).check()
