"""A file whose only use is to be deleted when the disk is full: SQLite needs room even to delete."""

import logging
import os
from pathlib import Path
from typing import Final

LOG = logging.getLogger(__name__)

ROOM: Final = 4  # times the ballast's size must be free before it is made again


class Ballast:
    """The file at `path` of `size_bytes`, 0 for none. What isn't needed isn't written while it is `missing`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._was_freed = False

    @property
    def missing(self) -> bool:
        """Whether the disk is, or was until now, so full that there is no ballast."""
        return self._size_bytes > 0 and not self._path.exists()

    def make(self) -> bool:
        """Make the file unless it is there, or there is no room for it; whether it is there now."""
        if not self.missing:
            return self._size_bytes > 0
        if free_bytes(self._path.parent) < ROOM * self._size_bytes:
            return False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)  # takes the room, writes nothing
            finally:
                os.close(descriptor)
        except OSError as error:
            LOG.debug("%s: can't be made (%s)", self._path, error)
            self._path.unlink(missing_ok=True)
            return False
        if self._was_freed:
            LOG.info("the disk has room again")
            self._was_freed = False
        return True

    def free(self) -> bool:
        """Delete the file when the disk is full; whether that made room."""
        if self.missing or not self._size_bytes or free_bytes(self._path.parent) >= self._size_bytes:
            return False
        try:
            self._path.unlink()
        except OSError as error:
            LOG.error("%s: can't be deleted (%s)", self._path, error)
            return False
        LOG.error(
            "the disk is full: %s of %d bytes is deleted for the updates; free some disk space",
            self._path, self._size_bytes,
        )  # fmt: skip
        self._was_freed = True
        return True


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write to the disk on which `path` is, or would be."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
