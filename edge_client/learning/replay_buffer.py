"""The examples a device trains on: a ring of the most recent ones, allocated once."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pollen.bundle import Manifest

Array = npt.NDArray[Any]


class ReplayBuffer:
    """At most `capacity` examples of one model; the newest replaces the oldest.

    Each example has a serial number, 0, 1, 2, … in order of arrival, which tells distinct ones apart.
    """

    def __init__(self, manifest: Manifest, capacity: int) -> None:
        self._x = np.zeros((capacity, *manifest.input_shape), manifest.input_dtype)
        self._y = np.zeros((capacity, *manifest.label_shape), manifest.label_dtype)
        self._total = 0

    def __len__(self) -> int:
        return min(self._total, len(self._x))

    @property
    def total(self) -> int:
        """Examples added so far; the next one's serial number."""
        return self._total

    def add(self, x: Array, y: Array) -> None:
        """Add one example."""
        slot = self._total % len(self._x)
        self._x[slot] = x
        self._y[slot] = y
        self._total += 1

    def take(self, slots: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Copies of the examples in `slots` (0 ≤ slot < len): x [n, …] and y [n, …]."""
        return self._x[slots], self._y[slots]

    def serials(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The serial numbers of the examples in `slots` now."""
        capacity = len(self._x)
        newest_round = (self._total - 1) // capacity * capacity
        serials = newest_round + slots
        return np.where(serials < self._total, serials, serials - capacity)
