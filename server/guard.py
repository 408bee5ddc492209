"""The admission guard: what an update must be before a rule may see it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from pollen.errors import Malformed, MessageError
from server.guards.direction import Direction
from server.guards.norms import Norms
from server.guards.rate import Rate
from server.guards.settings import GuardSettings
from server.model import GlobalModel
from server.rules.arithmetic import norm
from server.rules.kept import Kept
from server.rules.rule import Vector
from server.tasks import Evaluated

LOG = logging.getLogger("pollen.server.guard")

MAX_DELTA = 1e15  # per number; a handful of updates of the largest float32 would overflow the model

GUARD: Final = "guard/"

Kind = Literal[
    Malformed,
    "failed",  # the device says that it could not do the task
    "rate",
    "unknown-task",
    "residual",  # measured against a contribution, though the task did not ask for it
    "samples",
    "base",  # the base version was never issued
    "magnitude",
    "norm",
    "cosine",
    "staleness",
    "rule",  # the merge rule can't use it: see UnmergeableError
    "privacy",  # the device's budget is spent
    "blocked",  # an operator has locked the device out
]


class RefusedError(Exception):
    """An update is not admitted; the text is the reason told to the device, `kind` what it is counted under."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Arrival:
    """A reply to a task as it came in.

    task: None when `payload` could not be read. error: why there is no update (the device failed, or the payload is
    unusable), and its `kind`. write_delta: writes the delta into a float32 [P] vector, raising MessageError when it
    doesn't fit the model. against: see `Incoming`. base_weights: the base model [P] where the fleet keeps it itself.
    evaluated: the answer to an evaluate task, which is no update. handle: what the fleet needs to settle it.
    """

    device: str
    node: int
    task: bytes | None
    seq: int = 0
    base: int = 0
    samples: int = 0
    steps: int = 0
    error: str = ""
    kind: Kind = "failed"
    write_delta: Callable[[Vector], None] | None = None
    against: bytes | None = None
    base_weights: Vector | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    size_bytes: int = 0
    payload: bytes = b""
    evaluated: Evaluated | None = None
    handle: object = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """An admitted delta: its L2 norm as it came, the factor it was scaled by, its cosine with the average of those
    admitted (None where that is not known), and a remark for the receipt where it was changed."""

    norm: float
    factor: float = 1.0
    cosine: float | None = None
    remark: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """What the history shall hold beside the norm."""
        metrics = {} if self.cosine is None else {"cosine": self.cosine}
        return metrics if self.factor == 1.0 else {**metrics, "clipped": self.factor}


class Guard:
    """Admits updates or refuses them, each with its reason; see `GuardSettings`.

    What it remembers changes with the arrivals alone, and is committed with them (`drain`, `restore`). Plain deltas,
    residuals, and residuals against no contribution are of different lengths: each is compared with its like.
    """

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self._kept = Kept()
        self._rate = Rate(self._kept, self.settings.updates_per_minute, self.settings.burst)
        forms = ("delta", "residual", "first")
        self._norms = {form: Norms(self._kept, f"norm/{form}/", self.settings.norm_window) for form in forms}
        self._directions = {form: Direction(self._kept, f"direction/{form}") for form in forms}

    def read(self, arrival: Arrival, model: GlobalModel, out: Vector, now_s: float = 0.0) -> int:
        """Check `arrival` by itself and write its delta into `out` [P]; returns its staleness in merges.

        `now_s`: seconds by the server's clock. Raises RefusedError: the device's own error, too many updates a minute,
        fewer than 1 sample or more than an update may claim, a base version that was never issued, tensors of wrong
        names, shapes or dtypes, numbers that are not finite.
        """
        if arrival.error or arrival.write_delta is None:
            raise RefusedError(arrival.kind, arrival.error or "no update in the reply")
        if self.settings.updates_per_minute and not self._rate.take(arrival.device, now_s):
            raise RefusedError("rate", f"more than {self.settings.updates_per_minute:g} updates a minute")
        if not 1 <= arrival.samples <= self.settings.most_samples:
            most = self.settings.most_samples
            raise RefusedError("samples", f"n = {arrival.samples} samples; an update needs 1 to {most}")
        if model.was_rolled_back(arrival.base):
            raise RefusedError("base", f"base version {arrival.base} was rolled back")
        if not model.was_issued(arrival.base):
            raise RefusedError("base", f"base version {arrival.base} was never issued; the newest is {model.version}")
        try:
            arrival.write_delta(out)
        except MessageError as error:
            raise RefusedError(error.kind, str(error)) from error
        except Exception as error:
            # A decoder must raise nothing else; if one does, the sender is refused and the fleet goes on.
            LOG.exception("%s: an update could not be decoded", arrival.device)
            raise RefusedError("unreadable", "the update could not be decoded") from error
        return model.version - arrival.base

    def judge(self, arrival: Arrival, delta: Vector) -> Admitted:
        """Compare the `delta` [P] of `arrival` with those before it; one beyond the norm bound may be scaled in place.

        Raises RefusedError: numbers beyond any use, a norm beyond the bound, a direction too far from the others'.
        """
        with np.errstate(over="ignore"):
            length = norm(delta)
        if not length <= MAX_DELTA:  # no number is larger than the norm, which overflows to infinity
            largest = float(np.max(np.abs(delta), initial=0.0))
            if not largest <= MAX_DELTA:
                raise RefusedError("magnitude", f"the delta's largest number is {largest:.3g}, above {MAX_DELTA:.0e}")
        if length == 0.0 or (self.settings.norm == "off" and not self.settings.judges_cosine):
            return Admitted(length)
        form = "delta" if arrival.against is None else "residual" if arrival.against else "first"
        norms, direction = self._norms[form], self._directions[form]
        judged = norms.count >= self.settings.warm_up
        bound = self._bound(norms) if judged else None
        share = norms.share(arrival.device)
        norms.add(arrival.device, length)
        cosine = None
        if self.settings.judges_cosine:
            cosine = direction.cosine(delta, length)
            if judged and cosine is not None and cosine < self.settings.cosine_least:
                least = self.settings.cosine_least
                raise RefusedError("cosine", f"cosine of {cosine:.3f} with the fleet's updates, the least is {least:g}")
        factor, remark = 1.0, ""
        if bound is not None and length > bound:
            reason = f"norm of {length:.4g}, the bound is {bound:.4g} ({self.settings.norm_factor:g} running medians)"
            # A device measures its next residual against what it sent: merged in part, the rest would be lost for good.
            if self.settings.norm == "refuse" or arrival.against is not None:
                raise RefusedError("norm", reason)
            factor, remark = bound / length, f"clipped: {reason}"
        if self.settings.judges_cosine:
            direction.add(delta, length, self.settings.cosine_step * share)
        if factor != 1.0:
            delta *= np.float32(factor)
        return Admitted(length, factor, cosine, remark)

    def take_over(self, settings: GuardSettings) -> None:
        """Go on by `settings`, whose norm_window must be the same; what is remembered stays."""
        self.settings = settings
        self._rate = Rate(self._kept, settings.updates_per_minute, settings.burst)

    def drain(self) -> dict[str, Any]:
        """What changed since the last call, to be committed with the merges: values by name, None for dropped ones."""
        return {GUARD + name: value for name, value in self._kept.drain().items()}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Take up what earlier commits kept."""
        values = {name.removeprefix(GUARD): value for name, value in kept.items() if name.startswith(GUARD)}
        self._kept.restore(values)
        for norms in self._norms.values():
            norms.restore(values)

    def _bound(self, norms: Norms) -> float | None:
        """The longest delta that is admitted whole; None where none is too long."""
        median = None if self.settings.norm == "off" else norms.median()
        return None if median is None else self.settings.norm_factor * median
