"""What a recording is to its replay: rows, one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """`values` float32 [k, C], NaN where there is none; `label` and `time` (seconds) where there are any; `is_bad`:
    something in it can't be read."""

    values: npt.NDArray[np.float32]
    label: float | int | None
    time: float | None
    is_bad: bool = False


class Recording(Protocol):
    """A file of readings, of at least one row. `timed`: its rows have times."""

    channels: tuple[str, ...]
    timed: bool

    def rows(self) -> Iterator[Row]:
        """All rows from the first, in bounded memory. Raises SensorError when the file can't be read any further."""
