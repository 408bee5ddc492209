"""How the device opens its SQLite databases: one that is damaged is put aside, since the agent must always start."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client.ballast import free_bytes

# Small pages, since a transaction of a few bytes writes whole ones.
PAGE_BYTES: Final = 1024
CHECKPOINT_BYTES: Final = 2**20  # of write-ahead log: rows that live shortly never reach the database's own pages
_NEWEST_FORMAT: Final = 10_000  # a version that no release will reach is a damaged one

# What says something about the machine and nothing about the file (SQLite, "Result and error codes").
_ENVIRONMENT: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
}


class DamagedError(Exception):
    """The file is no SQLite database, or a broken one."""


def connect(path: Path, limit_bytes: int, make_room: Callable[[], bool]) -> tuple[sqlite3.Connection, int]:
    """The database at `path`, made when there is none, that can't grow beyond `limit_bytes`; and its user_version.

    A commit is on the card when it returns (WAL, synchronous FULL). `make_room` is asked when that fails, and says
    whether it is worth another try. Raises DamagedError; sqlite3.Error or OSError when it can't be opened for a reason
    that isn't in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path, limit_bytes)
    except sqlite3.Error as error:
        if make_room():
            return connect(path, limit_bytes, make_room)
        if is_damage(error) and free_bytes(path.parent) >= CHECKPOINT_BYTES:
            raise DamagedError(str(error)) from error
        raise


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error while opening or reading says that the file is damaged."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _ENVIRONMENT


def is_full(error: sqlite3.Error) -> bool:
    """Whether an error while writing may come from a full disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def put_aside(path: Path) -> Path:
    """Rename a damaged database, with its log, to `path`.damaged, in place of an earlier one; returns that path.

    Raises OSError.
    """
    aside = damaged_path(path)
    for suffix in ("", "-wal"):
        source, target = Path(f"{path}{suffix}"), Path(f"{aside}{suffix}")
        target.unlink(missing_ok=True)
        if source.exists():
            source.rename(target)
    Path(f"{path}-shm").unlink(missing_ok=True)
    return aside


def damaged_path(path: Path) -> Path:
    """Where `put_aside` puts it."""
    return path.with_name(f"{path.name}.damaged")


def _connect(path: Path, limit_bytes: int) -> tuple[sqlite3.Connection, int]:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        execute = database.execute
        execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new database only
        check = " ".join(str(execute("PRAGMA quick_check(1)").fetchone()[0]).split())  # its finding may have lines
        if check != "ok":
            raise DamagedError(check)
        (version,) = execute("PRAGMA user_version").fetchone()
        if not 0 <= version < _NEWEST_FORMAT:
            raise DamagedError(f"format {version}")
        (page_bytes,) = execute("PRAGMA page_size").fetchone()
        # FULL: a commit is on the card before it counts (SQLite, "pragma synchronous").
        for setting in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "cache_size = -256",
            "secure_delete = OFF",  # on in Debian's SQLite, where each page of a deleted row is written once more
            f"journal_size_limit = {CHECKPOINT_BYTES}",
            f"wal_autocheckpoint = {CHECKPOINT_BYTES // page_bytes}",
            f"max_page_count = {max(limit_bytes // page_bytes, 16)}",
        ):
            execute(f"PRAGMA {setting}").fetchone()
    except BaseException:
        database.close()
        raise
    return database, version
