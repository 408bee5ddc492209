"""The state store: one SQLite file that holds what the server must know after a crash.

WAL with synchronous=FULL: a commit that returned is on the disk. One transaction a merged group holds the new
version with its weights, the strategy's state, the answered tasks with their receipts, and the next open tasks, so
there is no moment at which an update is merged but could be merged again.
"""

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from pollen import atomic, cbor
from pollen.errors import StoreError
from server.model import ISSUED_KEPT
from server.rules.rule import Vector
from server.tasks import OpenTask

FORMAT: Final = 1
APPLICATION_ID: Final = 0x706F6C6C  # "poll"
# A device has one open task and re-sends only its newest answer; a few more cover what a broker may still hold.
ANSWERS_KEPT_PER_DEVICE: Final = 8

_SCHEMA: Final = """
CREATE TABLE model (id INTEGER PRIMARY KEY CHECK (id = 1), bundle BLOB NOT NULL, version INTEGER NOT NULL,
                    weights BLOB NOT NULL, strategy BLOB NOT NULL);
CREATE TABLE issued (version INTEGER PRIMARY KEY, weights BLOB);
CREATE TABLE open (device TEXT PRIMARY KEY, task BLOB NOT NULL, node INTEGER NOT NULL, kind TEXT NOT NULL,
                   version INTEGER NOT NULL, opened_at REAL NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE answered (number INTEGER PRIMARY KEY, task BLOB NOT NULL UNIQUE, device TEXT NOT NULL,
                       seq INTEGER NOT NULL, receipt BLOB NOT NULL);
CREATE INDEX answered_by_device ON answered (device, number);
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a task was answered: by whom, by which update, and the receipt's payload."""

    task: bytes
    device: str
    seq: int
    receipt: bytes


@dataclass(slots=True)
class Commit:
    """Everything one transaction changes. `weights` [P] is None when no update was merged."""

    version: int
    weights: Vector | None = None
    strategy: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    opened: list[OpenTask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store held when it was opened. `issued`: published versions, with weights where still kept."""

    bundle: bytes
    version: int
    weights: Vector
    strategy: dict[str, Any]
    issued: list[tuple[int, Vector | None]]
    open_tasks: list[OpenTask]


class StateStore:
    """The file at `path`, created when it is missing; None keeps the state in memory, for runs that need no restart.

    Raises StoreError, and leaves the file as it is, when it is damaged, of a newer format, or not a Pollen store.
    """

    def __init__(self, path: Path | None) -> None:
        self._name = ":memory:" if path is None else str(path)
        self._lock: IO[bytes] | None = None
        if path is not None:
            self._lock = _lock(path)
        try:
            self._open(path)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _open(self, path: Path | None) -> None:
        with self._errors():
            if path is not None and (not path.exists() or path.stat().st_size == 0):
                _create(path)
        if path is not None:
            _check_file(path)
        with self._errors():
            # The merge loop is the only user, but it need not run in the thread that built the server.
            self._db = sqlite3.connect(self._name, isolation_level=None, check_same_thread=False)
            if path is None:
                _write_schema(self._db)
            self._db.execute("PRAGMA synchronous=FULL")

    def load(self) -> Stored | None:
        """The state at the last commit, None for a new store."""
        with self._errors():
            row = self._db.execute("SELECT bundle, version, weights, strategy FROM model").fetchone()
            if row is None:
                return None
            issued = self._db.execute("SELECT version, weights FROM issued ORDER BY version").fetchall()
            tasks = self._db.execute("SELECT task, node, device, kind, version, opened_at, config FROM open").fetchall()
        return Stored(
            bundle=row[0],
            version=row[1],
            weights=_vector(row[2]),
            strategy=cbor.decode(row[3], len(row[3])),
            issued=[(version, None if blob is None else _vector(blob)) for version, blob in issued],
            open_tasks=[_open_task(row) for row in tasks],
        )

    def begin(self, bundle: bytes, version: int, weights: Vector, strategy: dict[str, Any]) -> None:
        """Write the first state: the bundle's SHA-256, and the model [P] that training starts from."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO model VALUES (1, ?, ?, ?, ?)",
                (bundle, version, weights.tobytes(), cbor.encode(strategy)),
            )

    def commit(self, commit: Commit) -> None:
        """Make `commit` durable, whole or not at all. Raises StoreError when the disk refuses."""
        with self._transaction():
            if commit.weights is not None:
                self._db.execute(
                    "UPDATE model SET version = ?, weights = ?, strategy = ?",
                    (commit.version, commit.weights.tobytes(), cbor.encode(commit.strategy)),
                )
            for answer in commit.answers:
                self._db.execute("DELETE FROM open WHERE device = ? AND task = ?", (answer.device, answer.task))
                self._db.execute(
                    "INSERT INTO answered (task, device, seq, receipt) VALUES (?, ?, ?, ?)",
                    (answer.task, answer.device, answer.seq, answer.receipt),
                )
                self._db.execute(
                    "DELETE FROM answered WHERE device = ?1 AND number <= (SELECT number FROM answered"
                    " WHERE device = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                    (answer.device, ANSWERS_KEPT_PER_DEVICE),
                )
            self._db.executemany("INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?, ?, ?, ?)", _rows(commit.opened))

    def publish(self, version: int, weights: Vector, kept: Iterable[int]) -> None:
        """Note that `version` was issued with these weights [P]; drop the weights of versions not in `kept`."""
        versions = list(kept)
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO issued VALUES (?, ?)", (version, weights.tobytes()))
            oldest = min([version, *versions])
            self._db.execute("UPDATE issued SET weights = NULL WHERE version < ? AND weights NOTNULL", (oldest,))
            self._db.execute(
                "DELETE FROM issued WHERE version <="
                " (SELECT version FROM issued ORDER BY version DESC LIMIT 1 OFFSET ?)",
                (ISSUED_KEPT,),
            )

    def answer(self, task: bytes) -> Answer | None:
        """How `task` was answered, None when it was not or is no longer remembered."""
        with self._errors():
            row = self._db.execute("SELECT task, device, seq, receipt FROM answered WHERE task = ?", (task,)).fetchone()
        return None if row is None else Answer(*row)

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._name}: {error}; check the disk's space and health, then start again") from error


def _rows(tasks: Iterable[OpenTask]) -> Iterator[tuple[Any, ...]]:
    for task in tasks:
        config = cbor.encode(dict(task.config))
        yield task.device, task.task, _signed(task.node), task.kind, task.version, task.opened_at, config


def _signed(node: int) -> int:
    """A node id as SQLite keeps it: those that Flower draws have 64 bits and no sign."""
    return node - 2**64 if node >= 2**63 else node


def _open_task(row: tuple[Any, ...]) -> OpenTask:
    task, node, device, kind, version, opened_at, config = row
    return OpenTask(task, node % 2**64, device, kind, version, opened_at, cbor.decode(config, len(config)))


def _vector(blob: bytes) -> Vector:
    return np.frombuffer(blob, "<f4").astype(np.float32)


def _write_schema(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={FORMAT}")


def _create(path: Path) -> None:
    """Make an empty store beside `path` and rename it into place: a kill leaves none, or a whole one."""
    new = path.with_name(f"{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        _write_schema(db)
    finally:
        db.close()
    new.replace(path)
    atomic.flush_folder(path.parent)


def _lock(path: Path) -> IO[bytes]:
    """Make the folder, and hold `path`.lock until the process ends: two servers on one state would undo each other."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("wb")
    except OSError as error:
        raise StoreError(f"{path}: can't be opened ({error.strerror}); give a state_dir that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StoreError(f"{path}: in use by another server; stop it or give another state_dir") from error
    return lock


def _check_file(path: Path) -> None:
    """Refuse a file that is no whole Pollen store of this format, before SQLite could write to it."""
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            sound = " ".join(db.execute("PRAGMA quick_check(1)").fetchone()[0].split())  # its finding may have lines
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: damaged state store ({error}); restore a backup or move the file away") from error
    if application != APPLICATION_ID:
        raise StoreError(f"{path}: not a Pollen state store; give another state_dir")
    if version != FORMAT:
        raise StoreError(f"{path}: state store of format {version}, this software knows {FORMAT}; upgrade Pollen")
    if sound != "ok":
        raise StoreError(f"{path}: damaged state store ({sound}); restore a backup or move the file away")
