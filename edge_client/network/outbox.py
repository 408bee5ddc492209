"""The outbox: replies to tasks, in SQLite, until the server's receipt for each.

A row that was never handed to MQTT may be replaced by a newer result for the same task; from the moment it is handed
over it is frozen and only ever sent again as it is, since the server may have merged it. Only a receipt deletes it.

An update that lazy upload keeps back is a row like any other, so that a restart loses nothing of it, but is not sent.
With an update goes what its training made of the layers that stay here, see `personal_layers`.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np

from edge_client.model import personal_layers
from edge_client.model.personal_layers import Personal
from pollen.bundle import Floats
from pollen.errors import StoreError

SCHEMA: Final = 3
ANSWERED: Final = 64  # receipts remembered, so that a late task of theirs isn't done again
_PAGE_BYTES: Final = 4096
_TABLES: Final = """
CREATE TABLE reply (
    task BLOB PRIMARY KEY, leaf TEXT NOT NULL, seq INTEGER NOT NULL, base INTEGER NOT NULL, samples INTEGER NOT NULL,
    steps INTEGER NOT NULL, handed INTEGER NOT NULL, payload BLOB NOT NULL, residual BLOB
);
CREATE TABLE answered (task BLOB NOT NULL UNIQUE, position INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE residual (bundle BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE open_task (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), payload BLOB NOT NULL);
"""
# What formats lack; an outbox of an earlier release may hold updates, so it is taken along.
_MIGRATIONS: Final = {
    1: """
ALTER TABLE reply ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reply ADD COLUMN contribution BLOB;
CREATE TABLE contribution (bundle BLOB NOT NULL, task BLOB NOT NULL, vector BLOB NOT NULL);
""",
    2: personal_layers.TABLE,
}

ReplyLeaf = Literal["update", "result"]


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
    it can't (a full disk, a full outbox). Opening raises StoreError when the file is damaged or of a newer release.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None)
            self._prepare(limit_bytes)
            self._rows = {row.task: row for row in self._stored_rows()}
            self._answered = {task for (task,) in self._database.execute("SELECT task FROM answered")}
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{path}: can't be used as outbox ({error}); move it away to start an empty one"
            ) from error

    def close(self) -> None:
        """Close the database."""
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
        with self._transaction():
            self._database.execute(
                "INSERT INTO counter VALUES ('seq', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )
            (seq,) = self._database.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()
            payload = reply.build(seq)
            residual = None if reply.leaf == "result" else _blob(reply.bundle, reply.residual)
            contribution = None if reply.contribution is None else _blob(reply.bundle, reply.contribution)
            known = (reply.task, reply.leaf, seq, reply.base, reply.samples, reply.steps)
            # Not REPLACE: a row keeps its place, so the oldest task goes first.
            self._database.execute(
                "INSERT INTO reply (task, leaf, seq, base, samples, steps, handed, payload, residual, contribution,"
                " skipped) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)"
                " ON CONFLICT (task) DO UPDATE SET"
                " leaf = excluded.leaf, seq = excluded.seq, base = excluded.base, samples = excluded.samples,"
                " steps = excluded.steps, payload = excluded.payload, residual = excluded.residual,"
                " contribution = excluded.contribution, skipped = excluded.skipped",
                (*known, payload, residual, contribution, reply.skipped),
            )
            if reply.personal is not None:
                personal_layers.keep(self._database, reply.personal)
        row = self._rows[reply.task] = Row(*known, False, len(payload), reply.skipped)
        return row

    def release(self, keep: bytes = b"") -> None:
        """Let the updates that are kept back be sent, but for that of the task `keep`."""
        released = [row for row in self._rows.values() if row.skipped and row.task != keep]
        if released:
            with self._transaction():
                self._database.execute("UPDATE reply SET skipped = 0 WHERE task != ?", (keep,))
            self._rows.update((row.task, replace(row, skipped=0)) for row in released)

    def freeze(self, task: bytes) -> bytes:
        """Mark a reply as handed to MQTT, before it is, and return its payload; harmless when it is frozen already.

        With it goes the update's residual: from now on it is what the next update must carry.
        """
        row = self._rows[task]
        payload = self.payload(task)
        if not row.handed:
            with self._transaction():
                (residual,) = self._database.execute("SELECT residual FROM reply WHERE task = ?", (task,)).fetchone()
                self._database.execute("UPDATE reply SET handed = 1, residual = NULL WHERE task = ?", (task,))
                if residual is not None:
                    self._database.execute("DELETE FROM residual")
                    bundle, vector = residual[:_DIGEST_BYTES], residual[_DIGEST_BYTES:]
                    if vector:
                        self._database.execute("INSERT INTO residual VALUES (?, ?)", (bundle, vector))
            self._rows[task] = replace(row, handed=True)
        return payload

    def personal(self, bundle: bytes, layout: str) -> Personal | None:
        """What the device trained of its personal layers; None when it has nothing of that `layout` yet."""
        try:
            return personal_layers.find(self._database, bundle, layout)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: can't be read ({error})") from error

    def residual(self, bundle: bytes, size: int) -> Floats | None:
        """The residual [F] that the next update of the model `bundle` must carry; None when there is none."""
        found = self._read("SELECT vector FROM residual WHERE bundle = ?", bundle)
        if found is None or len(found[0]) != 4 * size:
            return None
        return np.frombuffer(found[0], np.float32)

    def unsent_residual(self, task: bytes, size: int) -> Floats | None:
        """The residual [F] that an unsent update leaves."""
        return _vector(self._read("SELECT residual FROM reply WHERE task = ?", task), size)

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

        When it was `merged`, a contribution of this reply is from now on the last merged one.
        """
        with self._transaction():
            found = self._database.execute("SELECT seq, contribution FROM reply WHERE task = ?", (task,)).fetchone()
            # First, for it makes the room that what follows needs in a full outbox.
            self._database.execute("DELETE FROM reply WHERE task = ?", (task,))
            if merged and found is not None and found[1] is not None:
                seq, (bundle, vector) = found[0], (found[1][:_DIGEST_BYTES], found[1][_DIGEST_BYTES:])
                self._database.execute("DELETE FROM contribution")
                self._database.execute("INSERT INTO contribution VALUES (?, ?, ?)", (bundle, task, vector))
                # A receipt may come late: what this device sent before can't be its last merged contribution any more.
                self._database.execute("UPDATE reply SET contribution = NULL WHERE seq < ?", (seq,))
            self._database.execute("INSERT OR IGNORE INTO answered (task) VALUES (?)", (task,))
            self._database.execute(
                "DELETE FROM answered WHERE position <= (SELECT max(position) FROM answered) - ?", (ANSWERED,)
            )
            answered = self._database.execute("SELECT task FROM answered").fetchall()
        self._answered = {known for (known,) in answered}
        return self._rows.pop(task, None)

    def open_task(self) -> bytes | None:
        """The payload of the train task that was open when the process ended."""
        found = self._read("SELECT payload FROM open_task")
        return None if found is None else bytes(found[0])

    def remember_open_task(self, payload: bytes | None) -> None:
        """Keep the open train task's payload across restarts; None: there is none any more."""
        with self._transaction():
            self._database.execute("DELETE FROM open_task")
            if payload is not None:
                self._database.execute("INSERT INTO open_task VALUES (1, ?)", (payload,))

    def _prepare(self, limit_bytes: int) -> None:
        execute = self._database.execute
        check = " ".join(execute("PRAGMA quick_check(1)").fetchone()[0].split())  # its finding may have lines
        if check != "ok":
            raise StoreError(f"{self._path}: the outbox is damaged ({check}); move it away to start an empty one")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise StoreError(
                f"{self._path}: an outbox of a newer release (format {version}, this is {SCHEMA}); upgrade pollen-fl"
            )
        # FULL: a commit is on the card before a reply is handed over (SQLite, "pragma synchronous").
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA cache_size = -256")
        execute("PRAGMA journal_size_limit = 1048576")
        if version < SCHEMA:
            missing = (_TABLES if version == 0 else "") + "".join(
                step for since, step in _MIGRATIONS.items() if since >= version
            )
            self._database.executescript(f"BEGIN IMMEDIATE; {missing} PRAGMA user_version = {SCHEMA}; COMMIT;")
        execute(f"PRAGMA max_page_count = {max(limit_bytes // _PAGE_BYTES, 16)}")

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

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: can't be written ({error}); free some disk space") from error


_DIGEST_BYTES: Final = 32


def _blob(bundle: bytes, vector: Floats | None) -> bytes:
    """The model's digest and the vector's bytes; the digest alone instead of a vector of zeros."""
    return bundle + (b"" if vector is None else vector.astype(np.float32).tobytes())


def _vector(found: tuple[Any, ...] | None, size: int) -> Floats | None:
    """The vector [F] in a row of one `_blob`, None when there is none of that length."""
    if found is None or found[0] is None or len(found[0]) != _DIGEST_BYTES + 4 * size:
        return None
    return np.frombuffer(found[0], np.float32, offset=_DIGEST_BYTES)
