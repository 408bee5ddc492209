"""The record of every certificate that an authority has issued, in one SQLite file."""

import contextlib
import datetime
import fcntl
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self, cast

from firmware_scripts.authority.certificates import Role
from pollen.errors import PollenError

_SCHEMA: Final = """
BEGIN;
CREATE TABLE names (name TEXT PRIMARY KEY, role TEXT NOT NULL);
CREATE TABLE certificates (
    number INTEGER PRIMARY KEY,
    serial TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL REFERENCES names,
    issued_at REAL NOT NULL,
    not_after REAL NOT NULL,
    revoked_at REAL
);
CREATE UNIQUE INDEX one_stands ON certificates (name) WHERE revoked_at IS NULL;
CREATE TABLE revocation_lists (number INTEGER PRIMARY KEY, made_at REAL NOT NULL);
PRAGMA user_version = 1;
COMMIT;
"""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One issued certificate; the times are UTC, `revoked_at` is None while it stands."""

    name: str
    role: Role
    serial: int
    issued_at: datetime.datetime
    not_after: datetime.datetime
    revoked_at: datetime.datetime | None


class Registry:
    """An open registry. A name keeps its role for ever and has at most one certificate that stands.

    Every change is durable when its method returns.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty one at `path`."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(_SCHEMA)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Open the one at `path` for the block, which no other process's overlaps.

        Raises PollenError when the file can't be used.
        """
        if not path.exists():
            raise PollenError(f"{path}: is missing; restore the authority's folder from its backup")
        with _lock_file(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    connection.executescript("PRAGMA foreign_keys = ON; PRAGMA synchronous = EXTRA")
                    (version,) = connection.execute("PRAGMA user_version").fetchone()
                    if version != _VERSION:
                        raise PollenError(f"{path}: has version {version}, this software knows {_VERSION}; upgrade")
                    yield cls(connection)
            except sqlite3.Error as error:
                raise PollenError(f"{path}: can't be used: {error}") from error

    def add(self, entry: Entry, *, replacing: bool) -> None:
        """Note a certificate; with `replacing` the one of the same name that stands is revoked with it."""
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (entry.name, entry.role))
            if replacing:
                self._revoke(entry.name, entry.issued_at)
            self._connection.execute(
                "INSERT INTO certificates (serial, name, issued_at, not_after) VALUES (?, ?, ?, ?)",
                (str(entry.serial), entry.name, entry.issued_at.timestamp(), entry.not_after.timestamp()),
            )

    def revoke(self, name: str, now: datetime.datetime) -> None:
        """Note that the certificate of `name` is revoked; nothing changes when none stands."""
        with self._connection:
            self._revoke(name, now)

    def next_list_number(self, now: datetime.datetime) -> int:
        """The number of a new revocation list, one more than the last."""
        with self._connection:
            cursor = self._connection.execute("INSERT INTO revocation_lists (made_at) VALUES (?)", (now.timestamp(),))
        return cast(int, cursor.lastrowid)

    def revoked(self) -> list[tuple[int, datetime.datetime]]:
        """The serial numbers of the revoked certificates, and since when."""
        rows = self._connection.execute(
            "SELECT serial, revoked_at FROM certificates WHERE revoked_at IS NOT NULL ORDER BY number"
        )
        return [(int(serial), _utc(since)) for serial, since in rows]

    def newest_list(self) -> tuple[int, datetime.datetime]:
        """The number of the newest revocation list, and when it was made."""
        number, made_at = self._connection.execute(
            "SELECT number, made_at FROM revocation_lists ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return int(number), _utc(made_at)

    def role(self, name: str) -> Role | None:
        """The role of `name`, None when it was never issued."""
        row = self._connection.execute("SELECT role FROM names WHERE name = ?", (name,)).fetchone()
        return cast(Role, row[0]) if row else None

    def names(self) -> list[str]:
        """Every name ever issued."""
        return [name for (name,) in self._connection.execute("SELECT name FROM names ORDER BY name")]

    def entries(self, name: str | None = None) -> list[Entry]:
        """Every certificate ever issued, or those of `name` alone; by name, the newest last."""
        rows = self._connection.execute(
            "SELECT name, role, serial, issued_at, not_after, revoked_at FROM certificates JOIN names USING (name)"
            " WHERE ?1 IS NULL OR name = ?1 ORDER BY name, number",
            (name,),
        )
        return [
            Entry(name, role, int(serial), _utc(issued), _utc(until), None if gone is None else _utc(gone))
            for name, role, serial, issued, until, gone in rows
        ]

    def _revoke(self, name: str, now: datetime.datetime) -> None:
        self._connection.execute(
            "UPDATE certificates SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL", (now.timestamp(), name)
        )


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _lock_file(path: Path) -> IO[str]:
    try:
        return path.with_suffix(".lock").open("a")
    except OSError as error:
        raise PollenError(
            f"{path.parent}: can't be written ({error.strerror}); run this as the folder's owner"
        ) from error
