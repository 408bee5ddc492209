"""ADWIN2: a window that grows while its mean stays, and loses its old part when it doesn't.

Bifet & Gavaldà 2007, "Learning from time-changing data with adaptive windowing", figures 1 and 2, section 4.
"""

import math
from typing import Any, Final

from edge_client.learning.drift.state import count, numbers

ROWS: Final = 16  # 5 · (2^16 - 1) = 327,675 values with max_buckets = 5

Bucket = tuple[float, float]  # sum, and sum of the squared distances from the bucket's mean


class Adwin:
    """The mean of a stream of values in [0, 1], over the longest recent window that shows no change.

    The window's values are kept as buckets: row i holds at most `max_buckets` of 2^i values each, and two make
    one of the next row. Every `clock` values, once more than `grace_period` are there, every border between buckets
    splits the window in an older part of n0 and a newer of n1 values, both at least `min_window_length`. Where their
    means differ by more than

        ε = √(2/m σ² ln(2/δ')) + 2/(3m) ln(2/δ'),   m = 1 / (1/(n0 - l + 1) + 1/(n1 - l + 1)),   δ' = δ / ln n

    (σ²: the window's variance, n its length, l = min_window_length) the oldest bucket goes, until no split does. The
    paper's m has l = 1; this one, as in MOA and river, asks more of short parts.

    Memory: `ROWS` rows, so at most 16 · max_buckets buckets; what is older than they hold is forgotten.
    """

    def __init__(
        self,
        delta: float = 0.002,
        *,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None:
        self._delta = delta
        self._clock = clock
        self._max_buckets = max_buckets
        self._shortest = min_window_length
        self._grace = grace_period
        self._ticks = 0
        self._rows: list[list[Bucket]] = [[]]  # each oldest first
        self._width = 0
        self._total = 0.0
        self._squares = 0.0

    @property
    def width(self) -> int:
        """Values in the window."""
        return self._width

    @property
    def mean(self) -> float:
        """The window's mean, 0 while it is empty."""
        return self._total / self._width if self._width else 0.0

    @property
    def variance(self) -> float:
        """The window's population variance."""
        return self._squares / self._width if self._width else 0.0

    def update(self, value: float) -> float:
        """Add a finite `value`; how far the mean rose from the older to the newer part where the window was cut, below
        0 when it fell, 0 when it wasn't cut."""
        if self._width:
            self._squares += self._width * (value - self.mean) ** 2 / (self._width + 1)
        self._width += 1
        self._total += value
        self._rows[0].append((value, 0.0))
        self._merge()
        self._ticks = (self._ticks + 1) % self._clock
        rise = 0.0
        if self._ticks == 0 and self._width > self._grace:
            while step := self._split():
                rise = rise or step
                self._drop_oldest()
        return rise

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain numbers and lists."""
        rows = [[value for bucket in row for value in bucket] for row in self._rows]
        return {"ticks": self._ticks, "rows": rows}

    def restore(self, state: Any) -> None:
        """Go on from `state`. Raises ValueError, and changes nothing, where it is no state of such a window."""
        rows = []
        found = state.get("rows") if isinstance(state, dict) else None
        if not isinstance(found, list) or not 1 <= len(found) <= ROWS:
            raise ValueError("drift: no rows of buckets")
        for entry in found:
            flat = numbers(entry, "drift: a row")
            if len(flat) % 2 or len(flat) > 2 * self._max_buckets or any(squares < 0 for squares in flat[1::2]):
                raise ValueError("drift: a row that is none")
            rows.append(list(zip(flat[::2], flat[1::2], strict=True)))
        ticks = count(state, "ticks", self._clock - 1)
        _trim(rows)
        self._rows, self._ticks = rows, ticks
        self._width, self._total, self._squares = 0, 0.0, 0.0
        for size, row in _oldest_first(rows):
            for total, squares in row:
                self._squares += squares + _between(self._width, self._total, size, total)
                self._width += size
                self._total += total

    def _merge(self) -> None:
        """Make two buckets one wherever a row has too many."""
        for index in range(ROWS):
            row = self._rows[index]
            if len(row) <= self._max_buckets:
                return
            if index + 1 == ROWS:
                self._drop_oldest()
                return
            if index + 1 == len(self._rows):
                self._rows.append([])
            size = 1 << index
            (older, older_squares), (newer, newer_squares) = row[:2]
            del row[:2]
            squares = older_squares + newer_squares + _between(size, older, size, newer)
            self._rows[index + 1].append((older + newer, squares))

    def _split(self) -> float:
        """The rise of the mean at the oldest border where it changes more than chance would, 0 where there is none."""
        older, older_total = 0, 0.0
        confidence = math.log(2 * math.log(self._width) / self._delta)
        spread = 2 * self.variance * confidence
        for size, row in _oldest_first(self._rows):
            for total, _ in row:
                older += size
                older_total += total
                newer = self._width - older
                if newer < self._shortest:
                    return 0.0
                if older < self._shortest:
                    continue
                rise = (self._total - older_total) / newer - older_total / older
                inverse = 1 / (older - self._shortest + 1) + 1 / (newer - self._shortest + 1)
                if abs(rise) > math.sqrt(inverse * spread) + 2 / 3 * confidence * inverse:
                    return rise
        return 0.0

    def _drop_oldest(self) -> None:
        size = 1 << (len(self._rows) - 1)
        total, squares = self._rows[-1].pop(0)
        self._width -= size
        self._total -= total
        self._squares = max(self._squares - squares - _between(size, total, self._width, self._total), 0.0)
        _trim(self._rows)


def _trim(rows: list[list[Bucket]]) -> None:
    """Let the last row be one with buckets, or the only one."""
    while len(rows) > 1 and not rows[-1]:
        rows.pop()


def _oldest_first(rows: list[list[Bucket]]) -> list[tuple[int, list[Bucket]]]:
    """(values in each bucket, buckets) of every row, the oldest first."""
    return [(1 << index, rows[index]) for index in reversed(range(len(rows)))]


def _between(size: int, total: float, other_size: int, other_total: float) -> float:
    """What two groups' distance adds to their joint sum of squares (Chan et al. 1979)."""
    if not size or not other_size:
        return 0.0
    return (total / size - other_total / other_size) ** 2 * size * other_size / (size + other_size)
