"""One agent a state directory: two would send each other's updates and end each other's tasks."""

import fcntl
from pathlib import Path
from typing import IO

from pollen.errors import SettingsError


def lock(folder: Path) -> IO[bytes]:
    """Hold `folder` for this process until the file returned is closed or the process ends, however it ends.

    Raises SettingsError when another process has it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("ab")
    except OSError as error:
        raise SettingsError(f"state_dir = {folder}: can't be written ({error.strerror}); check its owner") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise SettingsError(
            f"state_dir = {folder} is another pollen-edge's; stop that one, or give this one a folder of its own"
        ) from error
    return file
