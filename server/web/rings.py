"""Fixed memory for numbers over time: the newest rows of some float32 columns."""

import math
from array import array
from typing import Final

MAX_SECONDS: Final = 2**32 - 1


class Ring:
    """The newest `size` rows: a time (whole Unix seconds, 4 bytes) and a float32 for each of `names`; NaN is "not
    known". It grows as rows come, up to `size`. Not to be used by two threads at once."""

    __slots__ = ("_columns", "_names", "_next", "_size", "_times")

    def __init__(self, size: int, *names: str) -> None:
        self._size = size
        self._names = names
        self._times = array("I")
        self._columns = tuple(array("f") for _ in names)
        self._next = 0

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at: float, *values: float | None) -> None:
        """Put a row behind the others, in place of the oldest once it is full."""
        when = min(max(0, int(at)), MAX_SECONDS)
        if len(self._times) < self._size:
            self._times.append(when)
            for column, value in zip(self._columns, values, strict=True):
                column.append(math.nan if value is None else value)
            return
        self._times[self._next] = when
        for column, value in zip(self._columns, values, strict=True):
            column[self._next] = math.nan if value is None else value
        self._next = (self._next + 1) % self._size

    def columns(self) -> dict[str, list[float | None]]:
        """`time` and the columns by name, oldest row first; None for what is not known or not finite."""
        order = [*range(self._next, len(self._times)), *range(self._next)]
        shown: dict[str, list[float | None]] = {"time": [self._times[row] for row in order]}
        for name, column in zip(self._names, self._columns, strict=True):
            shown[name] = [column[row] if math.isfinite(column[row]) else None for row in order]
        return shown


class Curve:
    """At most `size` rows over any length of time: when it is full, every second one goes, so that old times are shown
    coarser than none. The newest row always stays."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: list[dict[str, object]] = []

    def add(self, row: dict[str, object]) -> None:
        """Put a row behind the others."""
        self._rows.append(row)
        if len(self._rows) > self._size:
            del self._rows[-2::-2]

    def rows(self) -> list[dict[str, object]]:
        """The rows, oldest first."""
        return list(self._rows)


class Averages:
    """The mean of values by span of time, at most `size` spans: when there are more, each two become one."""

    def __init__(self, size: int, seconds: float = 10.0) -> None:
        self._size = size
        self._seconds = seconds
        self._spans: list[tuple[int, float, int]] = []  # number of the span, sum, count

    def add(self, at: float, value: float) -> None:
        """Take a finite value of time `at` (Unix seconds), which should not be before the last one's."""
        number, total, count = int(at / self._seconds), value, 1
        if self._spans and self._spans[-1][0] >= number:
            number, before, counted = self._spans.pop()
            total, count = before + value, counted + 1
        self._spans.append((number, total, count))
        if len(self._spans) > self._size:
            self._halve()

    def rows(self) -> list[tuple[float, float]]:
        """(time in the middle of the span, mean), oldest first."""
        return [((number + 0.5) * self._seconds, total / count) for number, total, count in self._spans]

    def _halve(self) -> None:
        self._seconds *= 2
        halved: list[tuple[int, float, int]] = []
        for number, total, count in self._spans:
            if halved and halved[-1][0] == number // 2:
                _, before, counted = halved.pop()
                halved.append((number // 2, before + total, counted + count))
            else:
                halved.append((number // 2, total, count))
        self._spans = halved[-self._size :]


class PerMinute:
    """How many came in the last minute, by whole seconds of any clock."""

    def __init__(self) -> None:
        self._counts = [0] * 60
        self._seconds = [-1] * 60

    def add(self, now: float, count: int) -> None:
        """Count `count` more at `now`."""
        second = int(now)
        if self._seconds[second % 60] != second:
            self._seconds[second % 60], self._counts[second % 60] = second, 0
        self._counts[second % 60] += count

    def per_second(self, now: float, since: float) -> float:
        """The mean of the last minute, or of the time `since` a later beginning."""
        newest = int(now)
        counted = sum(c for c, s in zip(self._counts, self._seconds, strict=True) if newest - 60 < s <= newest)
        return counted / min(60.0, max(1.0, now - since))
