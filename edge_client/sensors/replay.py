"""Recorded data, replayed reading by reading."""

import logging
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.sensors import Channel, EndOfStreamError, Options, Reading
from edge_client.sensors.csv_recording import CsvRecording
from edge_client.sensors.npz_recording import NpzRecording
from edge_client.sensors.options import parse
from edge_client.sensors.recording import Recording, Row
from pollen.errors import SettingsError

LOG = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 64  # rows in one reading, when several have become due
_REGULAR: Final = 0.5  # steps in time that differ by less than half belong together


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`file`: a .csv (see `CsvRecording`) or an .npz (`NpzRecording`); `loop`: start again at the end, as if the first
    row followed on the last; `speed`: 0 gives a row at each reading, whatever its time; above 0, rows come when
    their time says so, that many times as fast; `time`: the column or array of the times, "" for "time" if there is
    one; `classes`: the names of the classes 0, 1, … in a CSV file's labels, separated by commas."""

    file: str
    loop: bool = False
    speed: float = 0.0
    time: str = ""
    classes: str = ""

    def __post_init__(self) -> None:
        if not self.speed >= 0:
            raise ValueError(f"speed = {self.speed} must be at least 0")


class ReplaySensor:
    """Gives the file's rows in order. A row that can't be read is NaN, and so a fault like any other sensor's.

    `Reading.time` is the recording's, so that its gaps are found; without times it counts rows.
    """

    def __init__(self, options: Options) -> None:
        self._options = parse(ReplayOptions, options)
        path = Path(self._options.file)
        if path.suffix.lower() == ".csv":
            classes = tuple(name.strip() for name in self._options.classes.split(",") if name.strip())
            self._recording: Recording = CsvRecording(path, self._options.time, classes)
        else:
            self._recording = NpzRecording(path, self._options.time)
        if self._options.speed and not self._recording.timed:
            raise SettingsError(f"sensor.options.speed = {self._options.speed:g} needs times, and {path} has none")
        self._channels = tuple(Channel(name, "") for name in self._recording.channels)
        self._usual_step = 0.0
        self._started: float | None = None
        self.bad_rows = 0
        self._rows = self._timed_rows()
        self._next = next(self._rows, None)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As named in the file; units are not recorded."""
        return self._channels

    def read(self) -> Reading | None:
        """The next row or window, None when none is due yet; EndOfStreamError after the last, unless it loops.

        Rows at regular times that have become due since the last reading come together, unless they have labels.
        """
        if self._next is None:
            raise EndOfStreamError
        if self._started is None:
            self._started = time.monotonic()
        speed = self._options.speed
        now = (time.monotonic() - self._started) * speed if speed else math.inf
        due, row = self._next
        if due > now:
            return None
        values = [row.values]
        self._next = next(self._rows, None)
        while speed and self._next is not None and len(values) < MOST_AT_ONCE:
            due, following = self._next
            if due > now or not self._belongs(following, row):
                break
            row = following
            values.append(row.values)
            self._next = next(self._rows, None)
        return Reading(np.concatenate(values), row.label, row.time)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _belongs(self, row: Row, before: Row) -> bool:
        """Whether `row` may come in one reading with the one before it: no label, and no gap between them."""
        if row.time is None or before.time is None or (row.label, before.label) != (None, None):
            return False
        step, usual = row.time - before.time, self._usual_step
        self._usual_step = step
        return step > 0 and abs(step - usual) <= _REGULAR * usual

    def _timed_rows(self) -> Generator[tuple[float, Row], None, None]:
        """Each row, and when it is due in seconds since the start. At the file's end, times go on as before."""
        due, number, shortest = 0.0, 0, math.inf
        before: float | None = None
        while True:
            shift: float | None = None if before is not None else 0.0
            begun_at = number
            for row in self._recording.rows():
                moment = row.time if self._recording.timed else float(number)
                if self._recording.timed and moment is not None:
                    if shift is None:
                        shift = (before or 0.0) + (shortest if shortest < math.inf else 0.0) - moment
                    moment += shift
                    step = 0.0 if before is None else moment - before
                    if step > 0:  # a time that stands still or goes backwards is due at once
                        due, shortest = due + step, min(shortest, step)
                    before = moment
                number += 1
                self._count_bad(row, number)
                yield due, replace(row, time=moment)
            if not self._options.loop or number == begun_at:
                return

    def _count_bad(self, row: Row, number: int) -> None:
        self.bad_rows += row.is_bad
        if row.is_bad and self.bad_rows == 1:
            LOG.warning("%s: row %d can't be read; others like it are only counted", self._options.file, number)
