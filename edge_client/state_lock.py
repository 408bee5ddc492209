"""One agent a state directory: two would send each other's updates and end each other's tasks."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pollen.errors import SettingsError


def lock(folder: Path) -> IO[bytes]:
    """Hold `folder` for this process until the file returned is closed or the process ends, however it ends.

    Raises SettingsError when another process has it, or something in it can't be written.
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
    for path in unwritable(folder):
        file.close()
        raise SettingsError(f"state_dir: {path} can't be written by this user; chown -R {folder} to the agent's user")
    return file


def is_held(folder: Path) -> bool:
    """Whether an agent has locked `folder`, as far as this user may see; where it may not, one might."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def unwritable(folder: Path) -> Iterator[Path]:
    """What an earlier run left in `folder` and this user can't write, as after one under sudo."""
    for path in (*folder.glob("*.sqlite"), *folder.glob("*.sqlite-*"), folder / "model"):
        if path.exists() and not os.access(path, os.W_OK):
            yield path
