"""FedAsync (Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, algorithm 1)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from server.rules.rule import Incoming, Merged, Vector, rule
from server.staleness import constant, hinge, polynomial

Staleness = Literal["constant", "polynomial", "hinge"]
Direction = Literal["model", "delta"]

# 512 KiB of scratch stay in a core's L2 cache; smaller blocks cost more in calls than they save.
BLOCK = 131_072


def mix_model(model: Vector, base: Vector, delta: Vector, alpha: float) -> None:
    """x <- (1 - alpha) x + alpha (x_tau + delta), in place: the paper's update with x_new = x_tau + delta.

    All float32 [P]. Computed as x + alpha ((x_tau - x) + delta), exact for alpha = 0.
    """
    factor = np.float32(alpha)
    scratch = np.empty(min(BLOCK, model.size), np.float32)
    for start in range(0, model.size, BLOCK):
        x = model[start : start + BLOCK]
        step = scratch[: x.size]
        np.subtract(base[start : start + BLOCK], x, out=step)
        step += delta[start : start + BLOCK]
        step *= factor
        x += step


def add_delta(model: Vector, delta: Vector, factor: float) -> None:
    """x <- x + factor delta, in place; float32 [P]."""
    weight = np.float32(factor)
    scratch = np.empty(min(BLOCK, model.size), np.float32)
    for start in range(0, model.size, BLOCK):
        x = model[start : start + BLOCK]
        step = scratch[: x.size]
        np.multiply(delta[start : start + BLOCK], weight, out=step)
        x += step


@rule("fedasync")
@dataclass(slots=True)
class FedAsync:
    """alpha_t = min(1, alpha s(t - tau) c(n)); direction "model" mixes models, "delta" adds alpha_t times the delta.

    When an update's base snapshot has been dropped, direction "model" falls back to "delta" and says so.
    `staleness`: constant, polynomial with exponent `a`, or hinge with slope `hinge_a` from `hinge_b` merges on.
    Raises ValueError naming the option.
    """

    alpha: float = 0.6
    staleness: Staleness = "polynomial"
    a: float = 0.5
    hinge_a: float = 10.0
    hinge_b: float = 4.0
    direction: Direction = "model"

    def __post_init__(self) -> None:
        for name, choices in (("staleness", get_args(Staleness)), ("direction", get_args(Direction))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(choices)}")
        for name in ("alpha", "a", "hinge_a", "hinge_b"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} = {value!r} must be a number")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} = {value} must be finite and not negative")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha} must be above 0 and at most 1")

    def weight(self, staleness: int, sample_weight: float) -> float:
        """alpha_t for an update `staleness` merges old with sample weight c(n)."""
        match self.staleness:
            case "constant":
                s = constant(staleness)
            case "polynomial":
                s = polynomial(staleness, self.a)
            case "hinge":
                s = hinge(staleness, self.hinge_a, self.hinge_b)
        return min(1.0, self.alpha * s * sample_weight)

    def merge(self, model: Vector, update: Incoming) -> Merged:
        """Merge `update` into `model` in place."""
        weight = self.weight(update.staleness, update.sample_weight)
        if self.direction == "model" and update.base is not None:
            mix_model(model, update.base, update.delta, weight)
            return Merged(weight)
        add_delta(model, update.delta, weight)
        fell_back = self.direction == "model"
        return Merged(weight, "base snapshot dropped: added as a delta" if fell_back else "")

    def state(self) -> dict[str, Any]:
        """FedAsync keeps nothing between merges."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
