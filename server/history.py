"""AsyncHistory: Flower's History with time stamps and every merge; written as JSON lines while it runs."""

import errno
import json
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.server.history import History

LOG = logging.getLogger("pollen.server.history")

FILE_LIMIT_BYTES: Final = 256 * 2**20
REJECTIONS_PER_S: Final = 10  # lines a device; a device that floods the server must not flood its disk
BURSTS_KEPT: Final = 1024  # devices whose rejections are counted


@dataclass(frozen=True, slots=True)
class Merge:
    """One merged update. `version` is the model's afterwards, `staleness` in merges, `delta_norm` its L2 norm,
    `size_bytes` of its payload, `elapsed_s` seconds since the server started."""

    elapsed_s: float
    version: int
    device: str
    staleness: int
    samples: int
    steps: int
    weight: float
    delta_norm: float
    size_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Burst:
    """The rejections of a device in the second from `started` on; `suppressed` have no line, `last` is the newest."""

    started: float
    lines: int = 0
    suppressed: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class AsyncHistory(History):
    """Flower's History (its "rounds" are versions here), plus `merges`, `rejections` and time-stamped evaluations.

    Keeps the newest `keep` of each in memory. With `path`, every event is also appended to that file as a JSON line,
    numbers that are not finite as null; a file that would grow beyond `limit_bytes` becomes `<path>.1` in place of
    the one before. Of a device's rejections, ten a second get a line; `suppressed` in the next line counts the
    others. A disk that refuses is logged once and costs the lines, never the run.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000, limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        super().__init__()
        self.merges: deque[Merge] = deque(maxlen=keep)
        self.rejections: deque[tuple[float, str, str]] = deque(maxlen=keep)
        self.evaluations: deque[tuple[float, int, float, dict[str, Any]]] = deque(maxlen=keep)
        self.merged = 0
        self._keep = keep
        self._bursts: dict[str, _Burst] = {}  # the longest silent first
        self._file = None if path is None else _LineFile(path, limit_bytes)
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since this history began."""
        return time.monotonic() - self._started

    def add_merges(self, merges: list[Merge]) -> None:
        """Record merged updates, in the order they were merged."""
        self.merges.extend(merges)
        self.merged += len(merges)
        self._write([{"event": "merge", **asdict(merge)} for merge in merges])

    def add_rejection(self, device: str, reason: str) -> None:
        """Record that an update of `device` was refused."""
        elapsed = self.elapsed_s()
        self.rejections.append((elapsed, device, reason))
        if self._file is None:
            return
        burst = self._bursts.pop(device, None) or _Burst(elapsed)
        if elapsed - burst.started >= 1.0:
            burst.started, burst.lines = elapsed, 0
        self._bursts[device] = burst
        burst.last = {"event": "rejection", "elapsed_s": elapsed, "device": device, "reason": reason}
        if burst.lines >= REJECTIONS_PER_S:
            burst.suppressed += 1
        else:
            burst.lines += 1
            self._write([{**burst.last, "suppressed": burst.suppressed}])
            burst.suppressed = 0
        while len(self._bursts) > BURSTS_KEPT:
            self._end_burst(next(iter(self._bursts)))

    def add_evaluation(self, version: int, loss: float, metrics: dict[str, Any]) -> None:
        """Record a central evaluation of `version`."""
        elapsed = self.elapsed_s()
        self.evaluations.append((elapsed, version, loss, metrics))
        self.add_loss_centralized(version, loss)
        self.add_metrics_centralized(version, metrics)
        # Flower's own are plain lists.
        del self.losses_centralized[: -self._keep]
        for values in self.metrics_centralized.values():
            del values[: -self._keep]
        entry = {"event": "evaluation", "elapsed_s": elapsed, "version": version, "loss": loss, "metrics": metrics}
        self._write([entry])

    def add_event(self, event: str, version: int) -> None:
        """Record a start, a stop or a publication at `version`."""
        self._write([{"event": event, "elapsed_s": self.elapsed_s(), "version": version}])

    def close(self) -> None:
        """Write what was suppressed last, and close the file."""
        for device in list(self._bursts):
            self._end_burst(device)
        if self._file is not None:
            self._file.close()

    def _end_burst(self, device: str) -> None:
        """Forget a device's burst; its newest rejection without a line gets one, and counts the others."""
        burst = self._bursts.pop(device)
        if burst.suppressed:
            self._write([{**burst.last, "suppressed": burst.suppressed - 1}])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if self._file is None or not entries:
            return
        now = time.time()
        self._file.append("".join(_line({"time": now, **entry}) for entry in entries).encode())


def rotated(path: Path) -> Path:
    """Where the lines before those in the history file `path` are, when it has been rotated."""
    return path.with_name(f"{path.name}.1")


class _LineFile:
    """A file of whole lines: what a full disk or a crash cut short is taken off again."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: FileIO | None = None
        self._size = 0
        self._failed = False

    def append(self, lines: bytes) -> None:
        """Append `lines`, each ended by a newline, to the file; no error is raised, but the first is logged."""
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


def _line(entry: dict[str, Any]) -> str:
    try:
        return json.dumps(entry, allow_nan=False) + "\n"
    except (TypeError, ValueError):  # seldom; a tour of every entry would cost more than the writing
        return json.dumps(_plain(entry), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: numpy's scalars as Python's, numbers that are not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
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
