"""The outbox's file: its tables, those of earlier releases, and what becomes of a damaged one."""

import logging
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client import sqlite_file
from edge_client.model import personal_layers
from pollen.errors import StoreError

LOG = logging.getLogger(__name__)

SCHEMA: Final = 5
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
    3: "ALTER TABLE reply ADD COLUMN crc INTEGER;",
    # Without the index and the sequence, which are pages to write at each receipt.
    4: """
CREATE TABLE receipt (position INTEGER PRIMARY KEY, task BLOB NOT NULL);
INSERT INTO receipt (position, task) SELECT position, task FROM answered;
DROP TABLE answered;
ALTER TABLE receipt RENAME TO answered;
""",
}


def open_file(path: Path, limit_bytes: int, make_room: Callable[[], bool]) -> tuple[sqlite3.Connection, int]:
    """The outbox's database, and how many replies in it were damaged and dropped.

    A damaged file is put aside and an empty one begun, since a device that doesn't start is worse than lost updates.
    Raises StoreError when it is of a newer release, or can't be opened for a reason that isn't in the file.
    """
    try:
        try:
            return _open(path, limit_bytes, make_room)
        except sqlite_file.DamagedError as error:
            aside = sqlite_file.put_aside(path)
            LOG.error(
                "%s is damaged (%s) and was moved to %s; replies that waited there, and what was trained of personal "
                "layers, are lost", path, error, aside.name,
            )  # fmt: skip
            return _open(path, limit_bytes, make_room)
    except (OSError, sqlite3.Error, sqlite_file.DamagedError) as error:
        raise StoreError(f"{path}: can't be used as outbox ({error}); check the disk and its permissions") from error


def _open(path: Path, limit_bytes: int, make_room: Callable[[], bool]) -> tuple[sqlite3.Connection, int]:
    database, version = sqlite_file.connect(path, limit_bytes, make_room)
    try:
        if version > SCHEMA:
            raise StoreError(
                f"{path}: an outbox of a newer release (format {version}, this is {SCHEMA}); upgrade pollen-fl"
            )
        _migrate(database, version, sqlite_file.damaged_path(path))
        return database, _drop_damaged(database, path)
    except (sqlite3.Error, TypeError) as error:
        database.close()
        if isinstance(error, TypeError) or sqlite_file.is_damage(error):
            raise sqlite_file.DamagedError(str(error)) from error
        raise
    except BaseException:
        database.close()
        raise


def _migrate(database: sqlite3.Connection, version: int, aside: Path) -> None:
    if version < SCHEMA:
        missing = (_TABLES if version == 0 else "") + "".join(
            step for since, step in _MIGRATIONS.items() if since >= version
        )
        if version == 0 and aside.exists():
            # Where updates are seconds apart, no sequence number of a damaged outbox was as large.
            missing += f"INSERT INTO counter VALUES ('seq', {int(aside.stat().st_mtime) + 1});"  # noqa: S608 - a number
        database.executescript(f"BEGIN IMMEDIATE; {missing} PRAGMA user_version = {SCHEMA}; COMMIT;")


def _drop_damaged(database: sqlite3.Connection, path: Path) -> int:
    """Delete replies whose checksum is wrong; SQLite's own check sees no wrong bytes within a value."""
    for table in ("answered", "open_task", "residual", "contribution", "personal"):
        database.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608 - so that one that is missing shows
    damaged = [
        task
        for task, payload, crc in database.execute("SELECT task, payload, crc FROM reply")
        if crc is not None and zlib.crc32(payload) != crc
    ]
    for task in damaged:
        LOG.error("%s: the reply to task %s is damaged and was dropped", path, bytes(task).hex())
        database.execute("DELETE FROM reply WHERE task = ?", (task,))
    return len(damaged)
