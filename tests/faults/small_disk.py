"""A small disk that can be filled: a tmpfs."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_client.ballast import free_bytes


def missing() -> str:
    """What mounting needs and this machine lacks, "" when nothing."""
    if shutil.which("mount") is None:
        return "mount is not installed"
    return "" if os.geteuid() == 0 else "not root"


class SmallDisk:
    """A disk of `size_mb` MiB, mounted on `folder`."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.folder = folder
        self._size_mb = size_mb

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m", "tmpfs", self.folder], check=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self) -> None:
        """Leave no room at all; called again, also none of what was freed since."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        assert free_bytes(self.folder) == 0

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "filler").unlink()
