"""Which of the examples that leave the recent ones are kept in a reservoir of fixed size.

`AlgorithmR`: each with the same probability (Vitter, "Random sampling with a reservoir", 1985, algorithm R).
`ClassBalanced`: as many of each class as there are (Chrysakis & Moens, "Online continual learning from imbalanced
data", 2020, algorithm 1, class-balancing reservoir sampling).
"""

import random
from collections.abc import Sequence
from typing import Any, Protocol

Chance = random.Random


class Reservoir(Protocol):
    """Decides over places 0 … capacity - 1; filled in order before any is taken again."""

    def place(self, label: int) -> int | None:
        """The place of the next example, of class `label`; None when it isn't kept."""

    def state(self) -> dict[str, Any]:
        """What must be remembered besides the kept examples, for CBOR."""

    def refilled(self, labels: Sequence[int], state: dict[str, Any]) -> None:
        """Start from examples of these classes in places 0, 1, …; raises ValueError when `state` can't be theirs.

        An empty `state` says that these were all there ever was.
        """


class AlgorithmR:
    """Every example seen is in the reservoir with probability capacity / seen."""

    def __init__(self, capacity: int, chance: Chance) -> None:
        self._capacity = capacity
        self._chance = chance
        self._filled = self._seen = 0

    def place(self, label: int) -> int | None:  # noqa: ARG002 - all classes are one here
        """See `Reservoir`."""
        self._seen += 1
        if self._filled < self._capacity:
            self._filled += 1
            return self._filled - 1
        place = self._chance.randrange(self._seen)
        return place if place < self._capacity else None

    def state(self) -> dict[str, Any]:
        """See `Reservoir`."""
        return {"seen": self._seen}

    def refilled(self, labels: Sequence[int], state: dict[str, Any]) -> None:
        """See `Reservoir`."""
        seen = state.get("seen", len(labels))
        if not isinstance(seen, int) or seen < len(labels):
            raise ValueError("a reservoir can't hold more than it has seen")
        self._filled, self._seen = len(labels), seen


class ClassBalanced:
    """A class that was never among the largest keeps all its examples; the others are each sampled fairly."""

    def __init__(self, capacity: int, chance: Chance) -> None:
        self._capacity = capacity
        self._chance = chance
        self._places: dict[int, list[int]] = {}
        self._seen: dict[int, int] = {}
        self._full: set[int] = set()
        self._filled = 0

    def place(self, label: int) -> int | None:
        """See `Reservoir`."""
        seen = self._seen[label] = self._seen.get(label, 0) + 1
        own = self._places.setdefault(label, [])
        if self._filled < self._capacity:
            own.append(self._filled)
            self._filled += 1
            return own[-1]
        most = max(len(places) for places in self._places.values())
        largest = [known for known, places in self._places.items() if len(places) == most]
        self._full.update(largest)
        if label in self._full:
            return self._chance.choice(own) if own and self._chance.random() * seen < len(own) else None
        taken = self._places[self._chance.choice(largest)]
        own.append(taken.pop(self._chance.randrange(len(taken))))
        return own[-1]

    def state(self) -> dict[str, Any]:
        """See `Reservoir`."""
        classes = sorted(self._seen)
        return {
            "classes": classes,
            "seen": [self._seen[label] for label in classes],
            "full": sorted(self._full),
        }

    def refilled(self, labels: Sequence[int], state: dict[str, Any]) -> None:
        """See `Reservoir`."""
        places: dict[int, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(label, []).append(place)
        known = dict(zip(state.get("classes", ()), state.get("seen", ()), strict=True))
        full = set(state.get("full", ()))
        if not all(isinstance(number, int) for number in (*known, *known.values(), *full)):
            raise ValueError("a reservoir's classes and counts must be integers")
        if state and any(known.get(label, 0) < len(held) for label, held in places.items()):
            raise ValueError("a reservoir can't hold more of a class than it has seen")
        self._places, self._full, self._filled = places, full, len(labels)
        self._seen = known | {label: max(known.get(label, 0), len(held)) for label, held in places.items()}
