"""The file behind a history: whole JSON lines, appended while the run goes on, rotated at a limit."""

import errno
import json
import logging
import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

LOG = logging.getLogger("pollen.server.history")


def rotated(path: Path) -> Path:
    """Where the lines before those in the history file `path` are, when it has been rotated."""
    return path.with_name(f"{path.name}.1")


class LineFile:
    """A file of whole lines: what a full disk or a crash cut short is taken off again.

    Beyond `limit_bytes` it becomes `<path>.1`, in place of the one before. Raises nothing: the first failure is logged,
    and `lost` counts the lines. Any thread may append.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: FileIO | None = None
        self._size = 0
        self._failed = False
        self._lock = threading.Lock()
        self.lost = 0

    def append(self, lines: bytes) -> None:
        """Append `lines`, each ended by a newline, to the file; no error is raised, but the first is logged."""
        with self._lock:
            self._append(lines)

    def _append(self, lines: bytes) -> None:
        try:
            file = self._file or self._open()
            if self._size and self._size + len(lines) > self._limit_bytes:
                self.close()
                self._path.replace(rotated(self._path))
                file = self._open()
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, "no space left")
            self._size += len(lines)
        except OSError as error:
            if not self._failed:
                LOG.error("%s: history can't be written (%s); training goes on without it", self._path, error)
            self._failed = True
            self.lost += lines.count(b"\n")
            with suppress(OSError):
                if self._file is not None:
                    self._file.truncate(self._size)
        else:
            self._failed = False

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(self._path, "a+")
        self._size = _whole_lines_bytes(self._file)
        self._file.truncate(self._size)
        return self._file


def line(entry: Mapping[str, Any]) -> str:
    """`entry` as one line of JSON, with its newline; numbers that are not finite become null, numpy's become JSON's."""
    try:
        return json.dumps(entry, allow_nan=False) + "\n"
    except (TypeError, ValueError):  # seldom; a tour of every entry would cost more than the writing
        return json.dumps(_plain(entry), allow_nan=False) + "\n"


def _whole_lines_bytes(file: FileIO) -> int:
    """How many bytes of `file` are whole lines."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)
