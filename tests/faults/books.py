"""The books while the fleet runs: each answer the server commits, against all that devices sent and were told."""

import contextlib
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pollen import messages
from pollen.messages import Receipt
from tests.system.whole import Whole, read

LOOK_S = 0.25
Promise = tuple[str, bytes, int]  # device, task, sequence number


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed answer; `seen` on the monotonic clock."""

    device: str
    receipt: Receipt
    seen: float


class Books:
    """Follows the server's state store, which forgets a device's answers but the newest few. A context manager.

    `whole.observer` adds what went over the broker while it could see that.
    """

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._entries: list[Entry] = []  # the one numbered n at n - 1
        self._merged: set[Promise] = set()
        self._newest: dict[str, int] = {}  # by device
        self._hole = ""
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="books", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def count(self) -> int:
        """Answers until now."""
        return len(self._entries)

    def merged(self) -> set[Promise]:
        """What was merged."""
        with self._changed:
            return set(self._merged)

    def promised(self) -> set[Promise]:
        """Every update that ever left a device: seen on the broker, or frozen in an outbox for its receipt."""
        assert self._whole.observer is not None
        found = set(self._whole.observer.updates())
        for device in self._whole.devices:
            outbox = self._whole.folder / device / "outbox.sqlite"
            with contextlib.suppress(sqlite3.Error, ValueError):
                rows = read(outbox, "SELECT task, seq FROM reply WHERE handed = 1 AND leaf = 'update'")
                found.update((device, bytes(task), seq) for task, seq in rows)
        return found

    def sent_again(self) -> tuple[int, int]:
        """How often an update was published beyond its first time, and a receipt."""
        assert self._whole.observer is not None
        updates, receipts = self._whole.observer.updates(), self._whole.observer.receipts()
        return sum(updates.values()) - len(updates), sum(receipts.values()) - len(receipts)

    def without_merge(self, devices: tuple[str, ...], after: int) -> list[str]:
        """Those of `devices` of which nothing was merged beyond the answer numbered `after`."""
        return [name for name in devices if self._newest.get(name, 0) <= after]

    def wait_for_each(self, devices: tuple[str, ...], seconds: float, *, after: int | None = None) -> float | None:
        """When each of `devices` had had something merged beyond the answer numbered `after`, by default the newest
        (monotonic); None when that does not happen within `seconds`."""
        with self._changed:
            after = len(self._entries) if after is None else after
            if not self._changed.wait_for(lambda: not self.without_merge(devices, after), seconds):
                return None
            first: dict[str, float] = {}
            for entry in self._entries[after:]:
                first.setdefault(entry.device, entry.seen)
        return max(first[name] for name in devices)

    def check(self) -> None:
        """Every answer is the merge of one update of one device into one version, and what devices were told is so."""
        assert not self._hole, self._hole
        with self._changed:
            entries = list(self._entries)
        for number, entry in enumerate(entries, 1):
            told = entry.receipt
            assert (told.outcome, told.version) == ("merged", number), f"answer {number}: {entry}"
        for what, keys in (
            ("task", Counter(entry.receipt.task for entry in entries)),
            ("update", Counter((entry.device, entry.receipt.seq) for entry in entries)),
        ):
            assert set(keys.values()) <= {1}, f"a {what} was merged twice: {keys.most_common(1)}"
        assert self._whole.observer is not None
        for device, receipt in self._whole.observer.receipts():
            if device in self._whole.devices and receipt.version <= len(entries):
                kept = entries[receipt.version - 1]
                assert (kept.device, kept.receipt) == (device, receipt), f"{device} was told {receipt}, kept: {kept}"

    def _follow(self) -> None:
        path = self._whole.folder / "server" / "state.sqlite"
        query = "SELECT number, device, receipt FROM answered WHERE number > {} ORDER BY number"
        while not self._closing.wait(LOOK_S):
            with contextlib.suppress(sqlite3.Error, ValueError):  # there is none yet, or the disk is full
                rows = read(path, query.format(len(self._entries)))
                if rows:
                    self.add(rows)

    def add(self, rows: list[tuple[int, str, bytes]]) -> None:
        """Enter answers: number, device and the receipt's payload, in the order of their numbers."""
        now = time.monotonic()
        with self._changed:
            for number, device, payload in rows:
                receipt = messages.decode_receipt(payload)
                if number != len(self._entries) + 1:
                    self._hole = self._hole or f"answer {number} comes after {len(self._entries)}"
                    return
                self._entries.append(Entry(device, receipt, now))
                self._merged.add((device, receipt.task, receipt.seq))
                self._newest[device] = number
            self._changed.notify_all()
