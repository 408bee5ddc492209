import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from pollen.demo.audit import Outbox, losses, read_outbox
from pollen.demo.history import Event
from pollen.demo.observer import Seen
from pollen.errors import PollenError

TASKS = [bytes([number]) * 16 for number in range(4)]


def merge(device: str, version: int) -> Event:
    return {"event": "merge", "device": device, "version": version}


def outbox(answered: Iterable[bytes] = (), waiting: Iterable[bytes] = ()) -> Outbox:
    return Outbox(frozenset(answered), frozenset(waiting))


def seen(published: int, merged: int) -> Seen:
    device = Seen()
    device.published = {task: number for number, task in enumerate(TASKS[:published], 1)}
    device.outcomes = dict.fromkeys(TASKS[:merged], "merged")
    return device


def test_nothing_is_lost_when_every_update_was_merged_once() -> None:
    events = [merge("a", 1), {"event": "publication", "version": 1}, merge("a", 2)]
    assert losses({"a": outbox(TASKS[:2])}, {"a": seen(2, 2)}, events) == []


@pytest.mark.parametrize(
    ("box", "device", "events", "says"),
    [
        (outbox(TASKS[:1], TASKS[1:2]), seen(2, 1), [merge("a", 1)], "1 update(s) in its outbox have no receipt"),
        (outbox(TASKS[:1]), seen(2, 1), [merge("a", 1)], "1 update(s) went over the broker and got no receipt"),
        (outbox(TASKS[:2]), seen(2, 2), [merge("a", 1)], "2 receipts say merged, the history has 1 merges"),
        (outbox(TASKS[:1]), seen(1, 1), [merge("a", 1), merge("a", 2)], "1 receipts say merged, the history has 2"),
        (outbox(TASKS[:2]), seen(1, 1), [merge("a", 1)], "it holds receipts that never went over the broker"),
        (outbox(TASKS[:2]), seen(2, 2), [merge("a", 1), merge("a", 1)], "don't count the versions up one by one"),
        (
            outbox(),
            seen(0, 0),
            [{"event": "rejection", "device": "a", "reason": "too large"}],
            "a: an update was rejected: too large",
        ),
    ],
)
def test_each_way_to_lose_an_update_is_found(box: Outbox, device: Seen, events: list[Event], says: str) -> None:
    lines = losses({"a": box}, {"a": device}, events)
    assert len(lines) == 1
    assert says in lines[0]


def test_an_outbox_is_read_without_being_changed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE reply (task BLOB)")
        database.execute("CREATE TABLE answered (task BLOB)")
        database.execute("INSERT INTO reply VALUES (?)", (TASKS[0],))
        database.execute("INSERT INTO answered VALUES (?)", (TASKS[1],))
    database.close()
    before = path.read_bytes()
    assert read_outbox(path) == outbox([TASKS[1]], [TASKS[0]])
    assert path.read_bytes() == before


def test_an_outbox_that_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(PollenError, match=r"outbox\.sqlite: the outbox can't be read"):
        read_outbox(path)


def test_a_device_that_never_made_an_outbox_holds_nothing(tmp_path: Path) -> None:
    assert read_outbox(tmp_path / "none.sqlite") == outbox()
