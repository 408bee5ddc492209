"""A recording in a CSV file, read line by line."""

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from edge_client.sensors.number import number
from edge_client.sensors.recording import Row
from pollen.errors import SensorError, SettingsError

LARGEST_LINE: Final = 2**16  # characters; the rest counts as another line
NO_CHANNELS: Final = ("subject", "device")  # whose rows these are
LABELS: Final = ("label", "y", "target")


class CsvRecording:
    """A CSV file, UTF-8, whose first line names the columns.

    `time` names the column of times, in seconds or ISO 8601 (without an offset: UTC); "" takes "time" where there is
    one. The first of "label", "y", "target" is the label; "subject" and "device" are left out; all others are channels.
    A cell that is no number is NaN, and so is every channel of a row with too few or too many cells.
    """

    def __init__(self, path: Path, time: str, classes: tuple[str, ...]) -> None:
        self._path = path
        self._classes = classes
        try:
            with _text(path) as file:
                line = file.readline(LARGEST_LINE)
                header = [name.strip() for name in _cells(line)]
                first = next(_lines(file), None)
        except OSError as error:
            raise SettingsError(f"sensor.options.file: {path} can't be read: {error}") from error
        if len(line) == LARGEST_LINE:
            raise SettingsError(f"sensor.options.file: {path}: its first line has more than {LARGEST_LINE} characters")
        if len(set(header)) < len(header) or "" in header or all(_seconds(name) is not None for name in header):
            raise SettingsError(f"sensor.options.file: {path}: its first line must name the columns, each another way")
        if len(header) == 1 and (";" in line or "\t" in line):
            raise SettingsError(f"sensor.options.file: {path}: separate its cells by commas: {line.strip()[:80]!r}")
        if time and time not in header:
            raise SettingsError(f"sensor.options.time: {path} has no column {time!r}, only {', '.join(header)}")
        if first is None:
            raise SettingsError(f"sensor.options.file: {path} has no row below its header")
        clock = time or "time"
        label = next((name for name in LABELS if name in header), "")
        self.timed = clock in header
        self.channels = tuple(name for name in header if name not in (clock, label, *NO_CHANNELS))
        if not self.channels:
            raise SettingsError(f"sensor.options.file: {path} has no column that is a channel")
        self._width = len(header)
        self._time = header.index(clock) if self.timed else None
        self._label = header.index(label) if label else None
        self._columns = [header.index(name) for name in self.channels]

    def rows(self) -> Iterator[Row]:
        """All rows from the first. Raises SensorError when the file can't be read any further."""
        try:
            with _text(self._path) as file:
                file.readline(LARGEST_LINE)
                for line in _lines(file):
                    yield self._row(_cells(line))
        except OSError as error:
            raise SensorError(f"{self._path} can't be read any further: {error}") from error

    def _row(self, cells: list[str]) -> Row:
        if len(cells) != self._width:
            return Row(np.full((1, len(self.channels)), np.nan, np.float32), None, None, is_bad=True)
        numbers = [number(cells[column]) for column in self._columns]
        bad = any(math.isnan(value) and cells[at].strip() for value, at in zip(numbers, self._columns, strict=True))
        time = None if self._time is None else _seconds(cells[self._time])
        label = None if self._label is None else self._labelled(cells[self._label].strip())
        bad = bad or (self._time is not None and time is None)
        return Row(np.array([numbers], np.float32), label, time, is_bad=bad)

    def _labelled(self, cell: str) -> float | int | None:
        if cell in self._classes:
            return self._classes.index(cell)
        value = number(cell)
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and "." not in cell else value


def _text(path: Path) -> TextIO:
    # A byte that is no UTF-8 spoils its cell, not the file.
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _lines(file: TextIO) -> Iterator[str]:
    """The lines that hold something."""
    while line := file.readline(LARGEST_LINE):
        if line.strip():
            yield line


def _cells(line: str) -> list[str]:
    """The cells of one line; a quotation mark that is never closed spoils that line only."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _seconds(cell: str) -> float | None:
    """A time in seconds, from a number or from ISO 8601; None when it is neither."""
    seconds = number(cell)
    if math.isfinite(seconds):
        return seconds
    try:
        moment = datetime.fromisoformat(cell.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
