"""The examples a device trains on: the most recent ones, and a reservoir of those before; allocated once."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.learning.reservoir import AlgorithmR, ClassBalanced, Reservoir
from pollen import scoring
from pollen.bundle import Manifest

Array = npt.NDArray[Any]
Slots = npt.NDArray[np.int64]


class ReplayBuffer:
    """At most `capacity` examples of one model: a ring of the newest, and `reservoir_share` of all for a reservoir.

    An example enters the reservoir, if at all, when it leaves the ring, so none is in both. `balanced`: the reservoir
    holds as many of each class, where the model's label is one class. Each example has a serial number, 0, 1, 2, … in
    order of arrival, which tells distinct ones apart.
    """

    def __init__(
        self,
        manifest: Manifest,
        capacity: int,
        reservoir_share: float = 0.0,
        *,
        balanced: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        self._x = np.zeros((capacity, *manifest.input_shape), manifest.input_dtype)
        self._y = np.zeros((capacity, *manifest.label_shape), manifest.label_dtype)
        self._serial = np.zeros(capacity, np.int64)
        self._ring = capacity - min(int(capacity * reservoir_share), capacity - 1)
        self._recent = self._next = self._kept = self._total = 0
        self._loss = manifest.loss
        self._balanced = balanced and scoring.is_classification(manifest.loss) and self._classes(0) == 1
        self._chance = chance or random.Random()  # noqa: S311 - picks examples, keeps no secret
        self._reservoir = self._new_reservoir()

    def __len__(self) -> int:
        return self._recent + self._kept

    @property
    def total(self) -> int:
        """Examples added so far; the next one's serial number."""
        return self._total

    @property
    def recent_capacity(self) -> int:
        """Examples that the ring can hold."""
        return self._ring

    def add(self, x: Array, y: Array, *, reservoir: bool = True) -> None:
        """Add one example; the one that leaves the ring for it may enter the reservoir, unless not `reservoir`."""
        slot = self._next
        if self._recent == self._ring and reservoir:
            place = self._reservoir.place(self._label(slot))
            if place is not None:
                self._move(slot, self._ring + place)
                self._kept = max(self._kept, place + 1)
        self._x[slot] = x
        self._y[slot] = y
        self._serial[slot] = self._total
        self._total += 1
        self._next = (slot + 1) % self._ring
        self._recent = min(self._recent + 1, self._ring)

    def take(self, slots: Slots) -> tuple[Array, Array]:
        """Copies of the examples in `slots` (0 ≤ slot < len): x [n, …] and y [n, …].

        Slots that `forget` emptied since they were drawn stand for some that it left.
        """
        rows = self._rows(slots)
        return self._x[rows], self._y[rows]

    def serials(self, slots: Slots) -> Slots:
        """The serial numbers of the examples in `slots` now."""
        found: Slots = self._serial[self._rows(slots)]
        return found

    def forget(self, keep: int) -> None:
        """Only the newest `keep` (≥ 1) of the stream's examples stay, as far as they are here."""
        oldest = self._total - max(keep, 1)
        kept = self._ring + np.flatnonzero(self._serial[self._ring : self._ring + self._kept] >= oldest)
        self._move(kept, slice(self._ring, self._ring + len(kept)))
        if len(kept) < self._kept:
            self._kept = len(kept)
            self._reservoir = self._new_reservoir()
            self._reservoir.refilled([self._label(self._ring + place) for place in range(self._kept)], {})
        if keep < self._recent:
            newest = (self._next - np.arange(max(keep, 1), 0, -1)) % self._ring
            self._move(newest, slice(0, len(newest)))
            self._recent = len(newest)
            self._next = self._recent % self._ring

    @property
    def example_bytes(self) -> int:
        """Bytes of one example."""
        return int(self._x[0].nbytes + self._y[0].nbytes)

    def reservoir_serials(self) -> Slots:
        """The serial numbers of the examples in the reservoir's places 0, 1, …; [r], a copy."""
        return self._serial[self._ring : self._ring + self._kept].copy()

    def reservoir_example(self, place: int) -> bytes:
        """The bytes of x and y of the example in that place of the reservoir."""
        return b"".join(column[self._ring + place].tobytes() for column in (self._x, self._y))

    def reservoir_state(self) -> dict[str, Any]:
        """What the reservoir must remember besides its examples, for CBOR."""
        return self._reservoir.state()

    def restore_reservoir(self, examples: Sequence[bytes], state: dict[str, Any]) -> None:
        """Fill an empty buffer's reservoir with `examples` of `reservoir_example`, oldest first.

        Raises ValueError, with nothing changed, when they or `state` are not such a buffer's.
        """
        size = self._x[0].nbytes
        if self._total or len(examples) > len(self._x) - self._ring:
            raise ValueError("the reservoir has no room for these examples")
        if any(len(example) != size + self._y[0].nbytes for example in examples):
            raise ValueError("these examples are of another shape")
        for place, example in enumerate(examples):
            row = self._ring + place
            self._x[row] = np.frombuffer(example[:size], self._x.dtype).reshape(self._x.shape[1:])
            self._y[row] = np.frombuffer(example[size:], self._y.dtype).reshape(self._y.shape[1:])
            self._serial[row] = place
        reservoir = self._new_reservoir()
        reservoir.refilled([self._label(self._ring + place) for place in range(len(examples))], state)
        self._reservoir = reservoir
        self._kept = self._total = len(examples)

    def _rows(self, slots: Slots) -> Slots:
        """Where `slots` stand; a restored reservoir may stand behind a ring that isn't full yet."""
        within = slots % max(len(self), 1)
        return np.where(within < self._recent, within, within - self._recent + self._ring)

    def _move(self, source: Any, target: Any) -> None:
        for column in (self._x, self._y, self._serial):
            column[target] = column[source]

    def _classes(self, row: int) -> int:
        """How many classes the label in `row` has."""
        return len(scoring.classes_of(self._loss, self._y[row : row + 1]))

    def _label(self, row: int) -> int:
        """The class of the example in `row`; 0 unless the reservoir is balanced."""
        return int(scoring.classes_of(self._loss, self._y[row : row + 1])[0]) if self._balanced else 0

    def _new_reservoir(self) -> Reservoir:
        kind = ClassBalanced if self._balanced else AlgorithmR
        return kind(len(self._x) - self._ring, self._chance)
