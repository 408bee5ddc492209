"""Files that appear whole or not at all, also across a power cut."""

import os
import tempfile
from pathlib import Path


def write(path: Path, payload: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Write `payload` to a temporary file beside `path`, flush it to the disk, and rename it into place.

    `mode`: the file's permissions; `owner`: its user and group, if not the writer's. Raises OSError when the disk
    refuses, or the file may not be given to `owner`; an old file stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            made = os.fstat(file.fileno())
            if owner is not None and owner != (made.st_uid, made.st_gid):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
