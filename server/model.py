"""The global model: one flat float32 vector, its version, and the snapshots that devices train from."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pollen.bundle import Tensor
from pollen.encoding import named, parameters
from server.rules.rule import Vector

ISSUED_KEPT: Final = 10_000


def digest(weights: Vector) -> bytes:
    """SHA-256 of the flat float32 vector's little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").data).digest()


@dataclass(frozen=True, slots=True)
class Issued:
    """A version that devices may have trained from: issued `at` seconds since 1970, by the server's clock, with its
    weights [P] where they are still kept."""

    version: int
    at: float
    weights: Vector | None


class GlobalModel:
    """The model that updates are merged into; owned by the merge loop, changed by nobody else.

    `weights` float32 [P], `version` = number of merges so far. The newest `keep` published versions stay as
    snapshots; of older ones only the fact that they were issued is remembered, for the newest `ISSUED_KEPT`.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        weights: Vector,
        version: int = 0,
        keep: int = 32,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if weights.shape != (parameters(tensors),):
            raise ValueError(f"weights have shape {weights.shape}, the tensors need ({parameters(tensors)},)")
        self.tensors = tuple(tensors)
        self.weights: Vector = np.array(weights, np.float32)
        self.version = version
        self._keep = keep
        self._snapshots: OrderedDict[int, Vector] = OrderedDict()
        self._issued: OrderedDict[int, float] = OrderedDict()  # version: seconds since 1970
        self._withdrawn: tuple[tuple[int, int], ...] = ()
        self._clock = clock
        views = named(self.weights, self.tensors)
        self._variances = [views[tensor.name] for tensor in self.tensors if tensor.is_variance]

    def advance(self) -> None:
        """Count a change of `weights`, which has just been made, as the next version.

        BatchNormalization's moving variances are merged like weights, by a step that may be longer than the way to any
        device's variance; what would be below 0 is 0 then.
        """
        for variance in self._variances:
            np.maximum(variance, 0, out=variance)
        self.version += 1

    def withdraw(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Take the versions of each (after, newest), all but `after`, for none to train from: they were rolled back."""
        self._withdrawn = tuple(ranges)

    def was_rolled_back(self, version: int) -> bool:
        """Whether a rollback to an earlier version has discarded `version`."""
        return any(after < version <= newest for after, newest in self._withdrawn)

    def publish(self) -> Issued:
        """Make the current version a snapshot that devices may train from."""
        if self.version not in self._snapshots:
            self.remember(Issued(self.version, self._clock(), self.weights.copy()))
        return Issued(self.version, self._issued[self.version], self._snapshots[self.version])

    def issue(self) -> None:
        """Note that the current version goes to devices; whoever gave it keeps its weights."""
        self.remember(Issued(self.version, self._clock(), None))

    def remember(self, issued: Issued) -> None:
        """Note that a version was issued."""
        version, weights = issued.version, issued.weights
        self._issued[version] = issued.at
        while len(self._issued) > ISSUED_KEPT:
            self._issued.popitem(last=False)
        if weights is not None:
            weights.flags.writeable = False
            self._snapshots[version] = weights
            while len(self._snapshots) > self._keep:
                self._snapshots.popitem(last=False)

    def was_issued(self, version: int) -> bool:
        """Whether a device can have trained from `version`; those older than what is remembered count as issued."""
        return version in self._issued or 0 <= version < next(iter(self._issued), 0)

    def age_s(self, version: int) -> float:
        """Seconds since `version` was issued, >= 0 whatever the clock does; since the oldest known, if it is older."""
        issued_at = self._issued.get(version)
        if issued_at is None:
            issued_at = next(iter(self._issued.values()), self._clock())
        return max(0.0, self._clock() - issued_at)

    def snapshot(self, version: int) -> Vector | None:
        """The weights [P] of a published version, None when they are no longer kept."""
        return self._snapshots.get(version)

    @property
    def kept_versions(self) -> list[int]:
        """Versions whose weights are still kept, oldest first."""
        return list(self._snapshots)

    def named_weights(self) -> dict[str, Vector]:
        """A copy of the current weights, by tensor name."""
        return {name: view.copy() for name, view in named(self.weights, self.tensors).items()}
