"""The outbox: what may change, what may not, and what a crash leaves."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_client import sqlite_file
from edge_client.model.personal_layers import Personal
from edge_client.network.outbox import ANSWERED, Outbox, Reply
from pollen import messages
from pollen.errors import StoreError

LIMIT = 2**22
A, B = b"a" * 16, b"b" * 16
PROJECT = Path(__file__).parents[3]


def reply(task: bytes, text: bytes, **fields: object) -> Reply:
    return Reply(task, "update", lambda seq: b"%d:%b" % (seq, text), **fields)  # type: ignore[arg-type]


def test_an_unsent_reply_is_replaced_and_a_sent_one_is_not(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        outbox.put(reply(A, b"first", base=3, samples=10))
        outbox.put(reply(B, b"other"))
        row = outbox.put(reply(A, b"second", base=3, samples=25))
        assert (row.seq, row.samples, row.handed) == (3, 25, False)
        assert [row.task for row in outbox.rows] == [A, B]
        assert outbox.freeze(A) == b"3:second"
        with pytest.raises(StoreError, match="was sent already"):
            outbox.put(reply(A, b"third"))
        assert outbox.payload(A) == b"3:second"
        assert outbox.freeze(A) == b"3:second"


def test_rows_seq_and_receipts_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"x", base=2, samples=5, steps=7))
        outbox.freeze(A)
        outbox.put(reply(B, b"y"))
        outbox.receipted(B)
        outbox.remember_open_task(b"task")
    with Outbox(path, LIMIT) as outbox:
        (row,) = outbox.rows
        assert (row.task, row.seq, row.base, row.samples, row.steps, row.handed) == (A, 1, 2, 5, 7, True)
        assert outbox.was_answered(B)
        assert not outbox.was_answered(A)
        assert outbox.open_task() == b"task"
        assert outbox.put(reply(B, b"z")).seq == 3


def test_a_late_receipt_does_not_bring_an_older_contribution_back(tmp_path: Path) -> None:
    model, vectors = b"m" * 32, np.arange(6, dtype=np.float32).reshape(2, 3)
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        for task, vector in ((A, vectors[0]), (B, vectors[1])):
            outbox.put(reply(task, b"x", bundle=model, contribution=vector))
            outbox.freeze(task)
        outbox.receipted(B, merged=True)
        outbox.receipted(A, merged=True)
        found = outbox.contribution(model, 3)
    assert found is not None
    assert found[0] == B
    np.testing.assert_array_equal(found[1], vectors[1])


def test_a_full_outbox_can_take_up_what_was_merged(tmp_path: Path) -> None:
    model, vector = b"m" * 32, np.ones(10_000, np.float32)

    def send(outbox: Outbox) -> None:
        for number in range(100):
            outbox.put(reply(bytes([number]) * 16, b"x", bundle=model, contribution=vector))
            outbox.freeze(bytes([number]) * 16)

    with Outbox(tmp_path / "outbox.sqlite", 2**18) as outbox:
        with pytest.raises(StoreError, match="full"):
            send(outbox)
        assert len(outbox.rows) >= 3
        for row in outbox.rows:
            outbox.freeze(row.task)
            outbox.receipted(row.task, merged=True)
            found = outbox.contribution(model, len(vector))
            assert found is not None
            assert found[0] == row.task
        assert not outbox.rows


def test_only_the_receipt_deletes_a_row(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        outbox.put(reply(A, b"x"))
        outbox.freeze(A)
        assert outbox.receipted(B) is None
        assert len(outbox.rows) == 1
        found = outbox.receipted(A)
        assert found is not None
        assert found.task == A
        assert outbox.rows == ()
        assert outbox.receipted(A) is None


def test_remembered_receipts_are_bounded(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        tasks = [index.to_bytes(16, "big") for index in range(ANSWERED + 10)]
        for task in tasks:
            outbox.receipted(task)
        assert [outbox.was_answered(task) for task in tasks] == [False] * 10 + [True] * ANSWERED


def test_the_residual_counts_only_once_its_update_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    first, second = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    digest = b"d" * 32
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"x", bundle=digest, residual=first))
        assert outbox.residual(digest, 2) is None
        assert outbox.unsent_residual(A, 2) is not None
        outbox.put(reply(A, b"y", bundle=digest, residual=second))
        outbox.freeze(A)
    with Outbox(path, LIMIT) as outbox:
        np.testing.assert_array_equal(outbox.residual(digest, 2), second)
        assert outbox.residual(b"e" * 32, 2) is None
        outbox.receipted(A)
        outbox.put(reply(B, b"exact", bundle=digest))
        outbox.freeze(B)
        assert outbox.residual(digest, 2) is None, "an exact update carries what was left"


def test_a_full_outbox_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", 2**18) as outbox:
        outbox.put(reply(A, b"kept"))
        with pytest.raises(StoreError, match=r"outbox\.sqlite: can't be written"):
            outbox.put(reply(B, b"x" * 2**19))
        assert [row.task for row in outbox.rows] == [A]
        assert outbox.payload(A) == b"1:kept"
        outbox.put(reply(B, b"small"))


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def _broken_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"\xee" * 8192
    path.write_bytes(content)


def _foreign_format(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60:64] = b"\x8a\x3f\x00\x01"  # the header's user version
    path.write_bytes(content)


def _missing_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE answered")
    database.close()


@pytest.mark.parametrize("damage", [_garbage, _broken_pages, _foreign_format, _missing_table])
def test_a_damaged_outbox_is_put_aside_and_an_empty_one_begun(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outbox.sqlite"
    for minutes in (1, 2):  # the second time in place of what was put aside the first
        with Outbox(path, LIMIT) as outbox:
            before = outbox.put(reply(A, os.urandom(20000))).seq
        damage(path)
        os.utime(path, (time.time() + 60 * minutes,) * 2)
        with Outbox(path, LIMIT) as outbox:
            assert outbox.rows == ()
            assert outbox.lost
            assert outbox.put(reply(B, b"new")).seq > before, "the server has seen those before"
        assert "outbox.sqlite is damaged" in caplog.text
        assert sorted(found.name for found in tmp_path.iterdir()) == ["outbox.sqlite", "outbox.sqlite.damaged"]
    with Outbox(path, LIMIT) as outbox:
        assert [row.task for row in outbox.rows] == [B]
        assert outbox.lost
        (tmp_path / "outbox.sqlite.damaged").unlink()
        assert not outbox.lost


def test_after_damage_no_sequence_number_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        before = outbox.put(reply(A, b"x")).seq
    sqlite_file.put_aside(path)  # and then the power is cut
    with Outbox(path, LIMIT) as outbox:
        assert outbox.lost
        assert outbox.put(reply(A, b"x")).seq > before + 10**6


def test_a_disk_that_cant_be_written_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    Outbox(path, LIMIT).close()
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
        pytest.raises(sqlite3.OperationalError) as raised,
    ):
        database.execute("DELETE FROM reply")
    assert not sqlite_file.is_damage(raised.value)


def test_a_reply_with_a_flipped_bit_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"a" * 100))
        outbox.put(reply(B, b"b" * 100))
    content = path.read_bytes()
    assert content.count(b"a" * 100) == 1
    path.write_bytes(content.replace(b"a" * 100, b"a" * 99 + b"c"))
    with Outbox(path, LIMIT) as outbox:
        assert [row.task for row in outbox.rows] == [B]
        assert outbox.lost


def test_an_outbox_of_a_newer_release_is_refused_by_name(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer\.sqlite.*newer release"):
        Outbox(newer, LIMIT)


def test_a_kill_costs_no_more_than_the_last_residual(tmp_path: Path) -> None:
    path, digest = tmp_path / "outbox.sqlite", b"d" * 32
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"x", bundle=digest, residual=np.array([1, 2], np.float32)))
        outbox.freeze(A)
    killed = Outbox(path, LIMIT)
    killed.put(reply(B, b"carries it", bundle=digest, residual=np.array([3, 4], np.float32)))
    killed.freeze(B)
    with Outbox(path, LIMIT) as outbox:  # while the other was never closed
        assert outbox.residual(digest, 2) is None, "what B carries must not be carried twice"
    killed.close()


def test_the_open_task_is_stored_with_the_next_reply_or_flush(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    killed = Outbox(path, LIMIT)
    killed.remember_open_task(b"first")
    killed.put(reply(A, b"x"))
    with Outbox(path, LIMIT) as outbox:
        assert outbox.open_task() == b"first"
    killed.remember_open_task(b"second")
    killed.flush()
    with Outbox(path, LIMIT) as outbox:
        assert outbox.open_task() == b"second"
    killed.close()


def test_an_open_task_that_was_answered_is_not_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    task = messages.encode(messages.Task(A, "train", "telemetry", 1, b"d" * 32, {}))
    killed = Outbox(path, LIMIT)
    killed.remember_open_task(task)
    killed.put(reply(A, b"x"))
    killed.receipted(A)
    assert killed.open_task() is None
    killed.flush()
    with Outbox(path, LIMIT) as outbox:
        assert outbox.open_task() is None
    killed.close()


@pytest.mark.parametrize("stored_by", [lambda outbox: outbox.put(reply(B, b"y")), lambda outbox: outbox.flush()])
def test_a_receipt_is_stored_with_the_next_reply_or_flush(
    tmp_path: Path, stored_by: Callable[[Outbox], object]
) -> None:
    path = tmp_path / "outbox.sqlite"
    killed = Outbox(path, LIMIT)
    killed.put(reply(A, b"x"))
    killed.freeze(A)
    killed.receipted(A)
    assert killed.rows == ()
    with Outbox(path, LIMIT) as outbox:
        assert [(row.task, row.handed) for row in outbox.rows] == [(A, True)], "sent once more, as it was"
    stored_by(killed)
    with Outbox(path, LIMIT) as outbox:
        assert outbox.row(A) is None
        assert outbox.was_answered(A)
    killed.close()


def test_what_is_about_to_be_sent_is_stored_as_frozen_in_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    killed = Outbox(path, LIMIT)
    killed.sends_now = lambda size: size < 10
    killed.put(reply(A, b"small"))
    killed.put(reply(B, b"larger than may go out"))
    wal = path.with_name("outbox.sqlite-wal")
    size = wal.stat().st_size
    killed.freeze(A)
    assert wal.stat().st_size == size
    with Outbox(path, LIMIT) as outbox:
        assert [row.handed for row in outbox.rows] == [True, False]
    killed.close()


def test_what_was_about_to_be_sent_and_was_not_may_still_grow(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        outbox.sends_now = lambda _size: True
        outbox.put(reply(A, b"x"))
        outbox.sends_now = lambda _size: False  # the connection is lost
        outbox.put(reply(A, b"xx"))
        outbox.put(reply(B, b"y"))
        outbox.sends_now = lambda _size: True
        outbox.put(reply(B, b"yy"))
    with Outbox(path, LIMIT) as outbox:
        assert [row.handed for row in outbox.rows] == [False, False]
        assert outbox.payload(A) == b"2:xx"


_WRITER = """
import sys, os
from pathlib import Path
from edge_client.network.outbox import Outbox, Reply
outbox = Outbox(Path(sys.argv[1]), 2**22)
print("open", flush=True)
for number in range(10**6):
    task = number.to_bytes(16, "big")
    for attempt in range(2):
        outbox.put(Reply(task, "update", lambda seq: b"%d %d " % (number, attempt) + b"x" * 5000))
    payload = outbox.freeze(task)
    print("frozen", number, payload.split()[1].decode(), flush=True)
    if number % 3:
        outbox.receipted(task)
        print("receipted", number, flush=True)
"""


def test_a_frozen_row_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    for attempt in range(8):
        path = tmp_path / f"outbox-{attempt}.sqlite"
        log = tmp_path / f"log-{attempt}"
        with log.open("wb") as stream:
            writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=stream, env=environment)
        deadline = time.monotonic() + 20
        while b"frozen" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.15)))  # a random point is what is tested
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
        whole, _, _ = log.read_text().rpartition("\n")  # the kill may have torn the last line
        events = [line.split() for line in whole.splitlines()[1:]]
        frozen = {int(event[1]) for event in events if event[0] == "frozen"}
        receipted = {int(event[1]) for event in events if event[0] == "receipted"}
        assert frozen
        with Outbox(path, LIMIT) as outbox:
            rows = {int.from_bytes(row.task, "big"): row for row in outbox.rows}
            # The last receipt may have been committed without having been printed.
            lost = frozen - receipted - set(rows)
            assert lost <= {max(frozen)}
            # A receipt is stored with the next reply.
            assert receipted & set(rows) <= {max(receipted, default=0)}
            for number in frozen & set(rows):
                assert rows[number].handed
                assert outbox.payload(rows[number].task).startswith(b"%d 1 " % number)


FORMAT_1 = """
CREATE TABLE reply (
    task BLOB PRIMARY KEY, leaf TEXT NOT NULL, seq INTEGER NOT NULL, base INTEGER NOT NULL, samples INTEGER NOT NULL,
    steps INTEGER NOT NULL, handed INTEGER NOT NULL, payload BLOB NOT NULL, residual BLOB
);
CREATE TABLE answered (task BLOB NOT NULL UNIQUE, position INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE residual (bundle BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE open_task (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), payload BLOB NOT NULL);
INSERT INTO reply VALUES (x'61616161616161616161616161616161', 'update', 7, 3, 10, 2, 1, x'73656e74', NULL);
INSERT INTO counter VALUES ('seq', 7);
PRAGMA user_version = 1;
"""


FORMAT_2 = """
ALTER TABLE reply ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reply ADD COLUMN contribution BLOB;
CREATE TABLE contribution (bundle BLOB NOT NULL, task BLOB NOT NULL, vector BLOB NOT NULL);
PRAGMA user_version = 2;
"""


@pytest.mark.parametrize("steps", [FORMAT_1, FORMAT_1 + FORMAT_2], ids=["format 1", "format 2"])
def test_an_outbox_of_an_earlier_release_is_taken_along(tmp_path: Path, steps: str) -> None:
    path = tmp_path / "outbox.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(steps)
    database.close()
    personal = Personal(b"m" * 32, "m", 4, np.ones(3, np.float32))
    for _ in range(2):
        with Outbox(path, LIMIT) as outbox:
            (row,) = outbox.rows
            assert (row.task, row.seq, row.handed, row.skipped) == (A, 7, True, 0)
            assert outbox.payload(A) == b"sent"
            outbox.put(
                reply(B, b"new", contribution=np.ones(2, np.float32), bundle=b"m" * 32, skipped=1, personal=personal)
            )
            assert [row.task for row in outbox.rows] == [A]
            kept = outbox.personal(b"m" * 32, "m")
            assert kept is not None
            assert kept.steps == 4


def test_what_is_kept_back_is_no_row_to_send_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"small", skipped=1))
        outbox.put(reply(B, b"small", skipped=4))
        assert outbox.rows == ()
        outbox.release(keep=B)
        assert [row.task for row in outbox.rows] == [A]
    with Outbox(path, LIMIT) as outbox:
        assert [row.task for row in outbox.rows] == [A]
        kept = outbox.row(B)
        assert kept is not None
        assert kept.skipped == 4
        outbox.put(reply(B, b"larger"))
        assert [row.task for row in outbox.rows] == [A, B]


def test_a_contribution_is_the_last_one_merged_for_its_model(tmp_path: Path) -> None:
    path, model = tmp_path / "outbox.sqlite", b"m" * 32
    first, second = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    with Outbox(path, LIMIT) as outbox:
        outbox.put(reply(A, b"x", bundle=model, contribution=first))
        assert outbox.contribution(model, 2) is None
        np.testing.assert_array_equal(outbox.unsent_contribution(A, 2), first)  # type: ignore[arg-type]
        outbox.receipted(A, merged=True)
        outbox.put(reply(B, b"y", bundle=model, contribution=second))
    with Outbox(path, LIMIT) as outbox:
        outbox.receipted(B, merged=False)
        task, vector = outbox.contribution(model, 2) or (b"", first)
        assert task == A
        np.testing.assert_array_equal(vector, first)
        assert outbox.contribution(b"o" * 32, 2) is None
        assert outbox.contribution(model, 3) is None
        outbox.put(reply(B, b"z"))
        outbox.receipted(B, merged=True)
        assert (outbox.contribution(model, 2) or (b"",))[0] == A, "a plain delta is no contribution"
