"""The outbox: replies to tasks, in SQLite, until the server's receipt for each.

A row that was never handed to MQTT may be replaced by a newer result for the same task; from the moment it is handed
over it is frozen and only ever sent again as it is, since the server may have merged it. Only a receipt deletes it.

An update that lazy upload keeps back is a row like any other, so that a restart loses nothing of it, but is not sent.
With an update goes what its training made of the layers that stay here, see `personal_layers`.

What is written, and how often, decides how long a flash card lives, so an update costs one commit. One that will be
sent at once (`sends_now`) is stored as frozen. Open task and receipts go with the next reply, or `flush`: without its
receipt a row is sent once more, and the server knows it. The residuals of error feedback, larger than the updates, are
written when the outbox is closed: a power cut costs what the last update's compression left out.
"""

import logging
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import numpy as np

from edge_client import sqlite_file
from edge_client.ballast import Ballast, free_bytes
from edge_client.model import personal_layers
from edge_client.model.personal_layers import Personal
from edge_client.network import outbox_file
from pollen import messages
from pollen.bundle import Floats
from pollen.errors import MessageError, StoreError

LOG = logging.getLogger(__name__)

ANSWERED: Final = 64  # receipts remembered, so that a late task of theirs isn't done again

ReplyLeaf = Literal["update", "result"]
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Row:
    """One waiting reply, without its payload of `size_bytes`. `handed`: it was given to MQTT, so it is frozen.
    `skipped`: how often running it was kept back; it is now, unless that is 0."""

    task: bytes
    leaf: str
    seq: int
    base: int
    samples: int
    steps: int
    handed: bool
    size_bytes: int
    skipped: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A reply to store: `build` makes the payload from its sequence number; an update has `base`, `samples` and
    `steps`, and the error-feedback `residual` [F] that is left once it is sent, for the model `bundle`. One measured
    against the last merged contribution has the `contribution` [F] that it makes; `skipped`: see `Row`; `personal`:
    what the same training made of the personal layers."""

    task: bytes
    leaf: ReplyLeaf
    build: Callable[[int], bytes]
    base: int = 0
    samples: int = 0
    steps: int = 0
    bundle: bytes = b""
    residual: Floats | None = None
    contribution: Floats | None = None
    skipped: int = 0
    personal: Personal | None = None


class Outbox:
    """The database at `path`, of at most `limit_bytes`. Used by one thread.

    Every method that writes commits to the disk before it returns, and raises StoreError, with nothing changed, when
    it can't (a full disk, though `ballast` was freed; a full outbox). A damaged file is put aside and an empty one
    begun, since a device that doesn't start is worse than lost updates; `lost` says so until that file is removed.
    Opening raises StoreError when the file is of a newer release or can't be opened.
    """

    def __init__(self, path: Path, limit_bytes: int, ballast: Ballast | None = None) -> None:
        self._path = path
        self._ballast = ballast or Ballast(path.with_name("ballast"), 0)
        self._database, self._damaged_rows = outbox_file.open_file(path, limit_bytes, self._ballast.free)
        self._rows = {row.task: row for row in self._stored_rows()}
        answered = self._database.execute("SELECT task FROM answered ORDER BY position")
        self._answered = deque((bytes(task) for (task,) in answered), ANSWERED)
        self._receipts: list[tuple[bytes, bool]] = []  # task and whether merged, of those that aren't stored yet
        self._stored_frozen = {row.task for row in self._rows.values() if row.handed}
        self.sends_now: Callable[[int], bool] = lambda _size: False  # whether a new row of that many bytes goes out
        found = self._read("SELECT payload FROM open_task")
        self._open_task: bytes | None = None if found is None else bytes(found[0])
        self._open_task_is_stored = True
        # Model and vector as in `_blob`: what the next update must carry, and what the unsent ones would leave.
        found = self._read("SELECT bundle, vector FROM residual")
        self._residual: bytes | None = None if found is None else bytes(found[0]) + bytes(found[1])
        self._unsent: dict[bytes, bytes] = {}

    @property
    def lost(self) -> bool:
        """Whether replies were lost to damage: an outbox that was put aside is still there, or a row was dropped."""
        return self._damaged_rows > 0 or sqlite_file.damaged_path(self._path).exists()

    def flush(self) -> None:
        """Write the open task and the receipts, unless they are written. Raises StoreError."""
        if self._receipts or not self._open_task_is_stored:
            self._commit(lambda: None)

    def close(self) -> None:
        """Write what is written at the end, and close the database."""
        try:
            self._commit(self._put_residuals)
        except StoreError as error:
            LOG.error("%s", error)
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The replies to be sent, oldest first."""
        return tuple(row for row in self._rows.values() if not row.skipped)

    def row(self, task: bytes) -> Row | None:
        """The reply that waits for this task's receipt, or is kept back."""
        return self._rows.get(task)

    def was_answered(self, task: bytes) -> bool:
        """Whether this task's receipt came, not too long ago."""
        return task in self._answered

    def payload(self, task: bytes) -> bytes:
        """The payload of a waiting reply."""
        found = self._read("SELECT payload FROM reply WHERE task = ?", task)
        if found is None:
            raise StoreError(f"{self._path}: no reply to task {task.hex()} is waiting")
        return bytes(found[0])

    def put(self, reply: Reply) -> Row:
        """Store a reply, in place of an unsent one for the same task; StoreError when that one is frozen."""
        old = self._rows.get(reply.task)
        if old is not None and old.handed:
            raise StoreError(f"{self._path}: the reply to task {reply.task.hex()} was sent already and can't change")

        def store() -> tuple[Row, bool]:
            self._database.execute(
                "INSERT INTO counter VALUES ('seq', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )
            (seq,) = self._database.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()
            payload = reply.build(seq)
            frozen = not reply.skipped and self.sends_now(len(payload))
            contribution = None if reply.contribution is None else _blob(reply.bundle, reply.contribution)
            known = (reply.task, reply.leaf, seq, reply.base, reply.samples, reply.steps)
            # Not REPLACE: a row keeps its place, so the oldest task goes first.
            self._database.execute(
                "INSERT INTO reply (task, leaf, seq, base, samples, steps, handed, payload, crc, contribution, skipped)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (task) DO UPDATE SET"
                " leaf = excluded.leaf, seq = excluded.seq, base = excluded.base, samples = excluded.samples,"
                " steps = excluded.steps, handed = excluded.handed, payload = excluded.payload, crc = excluded.crc,"
                " residual = NULL, contribution = excluded.contribution, skipped = excluded.skipped",
                (*known, frozen, payload, zlib.crc32(payload), contribution, reply.skipped),
            )
            if reply.personal is not None:
                self._put_personal(reply.personal)
            if frozen and reply.leaf == "update":
                self._drop_residual()
            return Row(*known, False, len(payload), reply.skipped), frozen

        row, frozen = self._commit(store)
        self._rows[reply.task] = row
        self._stored_frozen.discard(reply.task)
        if frozen:
            self._stored_frozen.add(reply.task)
        if reply.leaf == "update":
            self._unsent[reply.task] = _blob(reply.bundle, reply.residual)
        return row

    def release(self, keep: bytes = b"") -> None:
        """Let the updates that are kept back be sent, but for that of the task `keep`."""
        released = [row for row in self._rows.values() if row.skipped and row.task != keep]
        if released:
            self._commit(lambda: self._database.execute("UPDATE reply SET skipped = 0 WHERE task != ?", (keep,)))
            self._rows.update((row.task, replace(row, skipped=0)) for row in released)

    def freeze(self, task: bytes) -> bytes:
        """Mark a reply as handed to MQTT, before it is, and return its payload; harmless when it is frozen already.

        With it goes the update's residual: from now on it is what the next update must carry.
        """
        row = self._rows[task]
        payload = self.payload(task)
        if not row.handed:
            left = self._unsent.get(task) or self._stored_residual(task) or b""

            def freeze() -> None:
                # In place, as long as no residual was stored: the record keeps its size.
                self._database.execute("UPDATE reply SET handed = 1, residual = NULL WHERE task = ?", (task,))
                if row.leaf == "update":
                    self._drop_residual()

            if task not in self._stored_frozen:
                self._commit(freeze)
                self._stored_frozen.add(task)
            self._rows[task] = replace(row, handed=True)
            self._unsent.pop(task, None)
            if row.leaf == "update":
                self._residual = left if len(left) > _DIGEST_BYTES else None
        return payload

    def personal(self, bundle: bytes, layout: str) -> Personal | None:
        """What the device trained of its personal layers; None when it has nothing of that `layout` yet."""
        try:
            return personal_layers.find(self._database, bundle, layout)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: can't be read ({error})") from error

    def residual(self, bundle: bytes, size: int) -> Floats | None:
        """The residual [F] that the next update of the model `bundle` must carry; None when there is none."""
        if self._residual is None or not self._residual.startswith(bundle):
            return None
        return _vector((self._residual,), size)

    def unsent_residual(self, task: bytes, size: int) -> Floats | None:
        """The residual [F] that an unsent update leaves."""
        return _vector((self._unsent.get(task) or self._stored_residual(task),), size)

    def contribution(self, bundle: bytes, size: int) -> tuple[bytes, Floats] | None:
        """The last merged contribution [F] to the model `bundle` and its task's id; None when there is none."""
        found = self._read("SELECT task, vector FROM contribution WHERE bundle = ?", bundle)
        if found is None or len(found[1]) != 4 * size:
            return None
        return bytes(found[0]), np.frombuffer(found[1], np.float32)

    def unsent_contribution(self, task: bytes, size: int) -> Floats | None:
        """The contribution [F] that a waiting update makes, None for a plain delta."""
        return _vector(self._read("SELECT contribution FROM reply WHERE task = ?", task), size)

    def receipted(self, task: bytes, *, merged: bool = False) -> Row | None:
        """The receipt of `task` has come: delete its reply, remember the task. Returns the row, None if unknown.

        When it was `merged`, a contribution of this reply is from now on the last merged one. Stored later, unless the
        reply has a contribution.
        """
        if task not in self._answered:
            self._answered.append(task)
            self._receipts.append((task, merged))
        self._unsent.pop(task, None)
        self._stored_frozen.discard(task)
        row = self._rows.pop(task, None)
        makes_contribution = self._read("SELECT 1 FROM reply WHERE task = ? AND contribution NOT NULL", task)
        if makes_contribution is not None or len(self._receipts) >= ANSWERED:
            self.flush()
        return row

    def open_task(self) -> bytes | None:
        """The payload of the train task that was open when the process ended, unless it was answered since."""
        payload = self._open_task
        try:
            return None if payload is None or self.was_answered(messages.decode_task(payload).task) else payload
        except MessageError:
            return payload

    def remember_open_task(self, payload: bytes | None) -> None:
        """Keep the open train task's payload across restarts; None: there is none any more."""
        self._open_task_is_stored = self._open_task_is_stored and payload == self._open_task
        self._open_task = payload

    def _close(self, task: bytes, *, merged: bool) -> None:
        found = self._database.execute("SELECT seq, contribution FROM reply WHERE task = ?", (task,)).fetchone()
        self._database.execute("DELETE FROM reply WHERE task = ?", (task,))
        if merged and found is not None and found[1] is not None:
            seq, (bundle, vector) = found[0], (found[1][:_DIGEST_BYTES], found[1][_DIGEST_BYTES:])
            self._database.execute("DELETE FROM contribution")
            self._database.execute("INSERT INTO contribution VALUES (?, ?, ?)", (bundle, task, vector))
            # A receipt may come late: what this device sent before can't be its last merged contribution any more.
            self._database.execute("UPDATE reply SET contribution = NULL WHERE seq < ?", (seq,))
        self._database.execute("INSERT INTO answered (task) VALUES (?)", (task,))
        self._database.execute(
            "DELETE FROM answered WHERE position <= (SELECT max(position) FROM answered) - ?", (ANSWERED,)
        )

    def _drop_residual(self) -> None:
        # With a condition: without one SQLite writes a page even where there is no row.
        self._database.execute("DELETE FROM residual WHERE bundle NOT NULL")

    def _put_personal(self, personal: Personal) -> None:
        # In place where it can be, which touches neither the index nor the sequence of positions.
        done = self._database.execute(
            "UPDATE personal SET layout = ?, steps = ?, vector = ?"
            " WHERE bundle = ? AND position = (SELECT max(position) FROM personal)",
            (personal.layout, personal.steps, personal.values.astype(np.float32, copy=False).data, personal.bundle),
        )
        if not done.rowcount:
            personal_layers.keep(self._database, personal)

    def _put_open_task(self) -> None:
        self._database.execute("DELETE FROM open_task WHERE only_one = 1")
        if self._open_task is not None:
            self._database.execute("INSERT INTO open_task VALUES (1, ?)", (self._open_task,))

    def _put_residuals(self) -> None:
        self._drop_residual()
        if self._residual is not None:
            bundle, vector = self._residual[:_DIGEST_BYTES], self._residual[_DIGEST_BYTES:]
            self._database.execute("INSERT INTO residual VALUES (?, ?)", (bundle, vector))
        for task, blob in self._unsent.items():  # what was about to be sent and wasn't may grow again
            self._database.execute("UPDATE reply SET handed = 0, residual = ? WHERE task = ?", (blob, task))

    def _stored_residual(self, task: bytes) -> bytes | None:
        found = self._read("SELECT residual FROM reply WHERE task = ?", task)
        return None if found is None or found[0] is None else bytes(found[0])

    def _stored_rows(self) -> list[Row]:
        found = self._database.execute(
            "SELECT task, leaf, seq, base, samples, steps, handed, length(payload), skipped FROM reply ORDER BY rowid"
        )
        return [
            Row(task, leaf, seq, base, samples, steps, bool(handed), size, skipped)
            for task, leaf, seq, base, samples, steps, handed, size, skipped in found
        ]

    def _read(self, query: str, *values: object) -> tuple[Any, ...] | None:
        try:
            found: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: can't be read ({error})") from error
        return found

    def _commit(self, work: Callable[[], _Done]) -> _Done:
        """One transaction of `work`, and of what waited for one; once more when the disk was full and room could be
        made."""
        try:
            try:
                done = self._transaction(work)
            except sqlite3.Error as error:
                if not sqlite_file.is_full(error) or not self._make_room():
                    raise
                done = self._transaction(work)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: can't be written ({error}); free some disk space") from error
        self._open_task_is_stored = True
        self._receipts.clear()
        return done

    def _transaction(self, work: Callable[[], _Done]) -> _Done:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for task, merged in self._receipts:  # first, for that makes the room that what follows needs
                self._close(task, merged=merged)
            done = work()
            if not self._open_task_is_stored:
                self._put_open_task()
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return done

    def _make_room(self) -> bool:
        """Free the ballast, and the log of what is in the database already; whether the disk was full at all."""
        if not self._ballast.free() and free_bytes(self._path.parent) >= sqlite_file.CHECKPOINT_BYTES:
            return False
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            LOG.debug("%s: %s", self._path, error)
        return True


_DIGEST_BYTES: Final = 32


def _blob(bundle: bytes, vector: Floats | None) -> bytes:
    """The model's digest and the vector's bytes; the digest alone instead of a vector of zeros."""
    return bundle + (b"" if vector is None else vector.astype(np.float32).tobytes())


def _vector(found: tuple[Any, ...] | None, size: int) -> Floats | None:
    """The vector [F] in a row of one `_blob`, None when there is none of that length."""
    if found is None or found[0] is None or len(found[0]) != _DIGEST_BYTES + 4 * size:
        return None
    return np.frombuffer(found[0], np.float32, offset=_DIGEST_BYTES)
