"""The tables of the stream store: rows with checksums in SQLite."""

import logging
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client import sqlite_file

LOG = logging.getLogger(__name__)

SCHEMA: Final = 1
LATE_LABELS: Final = 10_000  # the newest are kept
_TABLES: Final = """
CREATE TABLE block (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, samples INTEGER NOT NULL, labels INTEGER NOT NULL,
    crc INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE late_label (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    label REAL NOT NULL
);
CREATE TABLE example (place INTEGER PRIMARY KEY, serial INTEGER NOT NULL, crc INTEGER NOT NULL, example BLOB NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A block on disk: in which life of the process it was made, its samples, its readings with labels, its bytes."""

    block: int
    run: int
    samples: int
    labels: int
    size_bytes: int


class StreamDatabase:
    """The database at `path`, of at most `limit_bytes`; one that is damaged is put aside and a new one begun.

    `run` numbers the lives of the process, `blocks` are those on disk, oldest first; `damaged` counts rows whose
    checksum was wrong. Every method raises sqlite3.Error; opening also OSError.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self.damaged = 0
        try:
            self._open(limit_bytes)
        except sqlite_file.DamagedError as error:
            aside = sqlite_file.put_aside(path)
            LOG.error(
                "%s is damaged (%s) and was moved to %s; the memory of the stream starts anew", path, error, aside.name
            )
            self._open(limit_bytes)

    def _open(self, limit_bytes: int) -> None:
        self._database, version = sqlite_file.connect(self._path, limit_bytes, lambda: False)
        self._execute = self._database.execute
        try:
            if version == 0:
                self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
            elif version != SCHEMA:
                raise sqlite_file.DamagedError(f"format {version}, this release writes {SCHEMA}")
            rows = self._execute("SELECT id, run, samples, labels, length(payload) FROM block ORDER BY id")
            self.blocks = deque(Stored(*row) for row in rows)
            self.run = 1 + max((stored.run for stored in self.blocks), default=0)
        except (sqlite3.Error, TypeError) as error:
            self._database.close()
            if isinstance(error, TypeError) or sqlite_file.is_damage(error):
                raise sqlite_file.DamagedError(str(error)) from error
            raise
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._execute("ROLLBACK")
            raise

    def add_block(self, payload: bytes, samples: int, labels: int) -> Stored:
        """Add a block; `blocks` is the caller's to change once it is committed."""
        row = (self.run, samples, labels, zlib.crc32(payload), payload)
        cursor = self._execute("INSERT INTO block (run, samples, labels, crc, payload) VALUES (?, ?, ?, ?, ?)", row)
        return Stored(cursor.lastrowid or 0, self.run, samples, labels, len(payload))

    def delete_blocks(self, last: Stored) -> None:
        """Delete the blocks up to `last`, and the labels of runs before its."""
        self._execute("DELETE FROM block WHERE id <= ?", (last.block,))
        self._execute("DELETE FROM late_label WHERE run < ?", (last.run,))

    def add_late_labels(self, labels: Sequence[tuple[float, float, float]]) -> None:
        """Add labels (first, last, label) of this run."""
        self._database.executemany(
            "INSERT INTO late_label (run, first, last, label) VALUES (?, ?, ?, ?)",
            [(self.run, *label) for label in labels],
        )
        self._execute("DELETE FROM late_label WHERE id <= (SELECT max(id) FROM late_label) - ?", (LATE_LABELS,))

    def put_example(self, place: int, serial: int, example: bytes) -> None:
        """Put an example of the reservoir in its place."""
        row = (place, serial, zlib.crc32(example), example)
        self._execute("INSERT OR REPLACE INTO example (place, serial, crc, example) VALUES (?, ?, ?, ?)", row)

    def delete_examples(self) -> None:
        """Empty the reservoir."""
        self._execute("DELETE FROM example")

    def put_state(self, name: str, value: bytes) -> None:
        """Keep `value` by its name."""
        self._execute(
            "INSERT OR REPLACE INTO state (name, crc, value) VALUES (?, ?, ?)", (name, zlib.crc32(value), value)
        )

    def delete_all(self) -> None:
        """Empty the tables."""
        for table in ("block", "late_label", "example", "state"):
            self._execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own

    def payload(self, stored: Stored) -> bytes | None:
        """A block's bytes; None when they are damaged."""
        found = self._checked("SELECT crc, payload FROM block WHERE id = ?", stored.block)
        return found[0] if found else None

    def late_labels(self, run: int, since: float, until: float) -> list[tuple[float, float, float]]:
        """The labels (first, last, label) that came late in a run for times from `since` to `until`, oldest first."""
        query = "SELECT first, last, label FROM late_label WHERE run = ? AND last >= ? AND first <= ? ORDER BY id"
        return self._execute(query, (run, since, until)).fetchall()

    def examples(self) -> list[bytes]:
        """The examples of the reservoir, oldest first, without those that are damaged."""
        return self._checked("SELECT crc, example FROM example ORDER BY serial")

    def state(self, name: str) -> bytes | None:
        """The value of that name; None when there is none, or a damaged one."""
        found = self._checked("SELECT crc, value FROM state WHERE name = ?", name)
        return found[0] if found else None

    def _checked(self, query: str, *values: object) -> list[bytes]:
        """The bytes of the rows (checksum, bytes) whose checksum is right."""
        rows = self._execute(query, values).fetchall()
        good = [value for crc, value in rows if isinstance(value, bytes) and zlib.crc32(value) == crc]
        self.damaged += len(rows) - len(good)
        return good
