"""What a merge rule is, and the table of all rules by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Incoming:
    """An update at the rule's door, already admitted by the guard.

    delta: float32 [P], the trained model minus its base. base: float32 [P], the model of the update's base version,
    None when that snapshot has been dropped. staleness: merges since the base version, >= 0. sample_weight: c(n).
    """

    delta: Vector
    base: Vector | None
    staleness: int
    sample_weight: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What a rule did: the factor it gave the update, and a remark for the receipt where it had to deviate."""

    weight: float
    remark: str = ""


class MergeRule(Protocol):
    """A function of (model, update, own state) that changes the model in place."""

    def merge(self, model: Vector, update: Incoming) -> Merged:
        """Merge `update` into `model` [P] in place. Same calls, same bits."""

    def state(self) -> dict[str, Any]:
        """What must survive a restart, as CBOR-encodable values; empty for a rule without memory."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` where an earlier process left it."""


rules: dict[str, Callable[..., MergeRule]] = {}

R = TypeVar("R", bound=Callable[..., Any])


def rule(name: str) -> Callable[[R], R]:
    """Enter a rule's class in `rules` under `name`."""

    def enter(cls: R) -> R:
        rules[name] = cls
        return cls

    return enter
