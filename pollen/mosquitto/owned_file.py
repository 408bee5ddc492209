"""Files of the broker's that somebody else, root above all, is writing: whole, its own, and one writer at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pollen import atomic


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """For the block, nobody else has `folder`: two revocations at once would undo one another. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write `content` to `path` as a whole; owner, group and mode stay. A new file gets the folder's owner and `mode`.

    After a reload that can't read its access rules, Mosquitto 2.0 grants everything to everybody. Raises OSError.
    """
    before = path.stat() if path.exists() else None
    owner = before or path.parent.stat()
    kept = mode if before is None else before.st_mode & 0o777
    atomic.write(path, content, kept, (owner.st_uid, owner.st_gid))
