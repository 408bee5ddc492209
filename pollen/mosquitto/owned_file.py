"""Replace a file of the broker's that somebody else, root above all, is writing."""

import os
from pathlib import Path

from pollen import atomic


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write `content` to `path` as a whole; owner, group and mode stay. A new file gets the folder's owner and `mode`.

    After a reload that can't read its access rules, Mosquitto 2.0 grants everything to everybody. Raises OSError.
    """
    before = path.stat() if path.exists() else None
    owner = before or path.parent.stat()
    fresh = path.with_name(f".{path.name}.fresh")
    try:
        atomic.write(fresh, content, before.st_mode & 0o777 if before is not None else mode)
        made = fresh.stat()
        if (made.st_uid, made.st_gid) != (owner.st_uid, owner.st_gid):
            os.chown(fresh, owner.st_uid, owner.st_gid)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    atomic.flush_folder(path.parent)
