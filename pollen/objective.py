"""What a device minimises and how: loss, optimizer and learning-rate schedule, as a manifest describes them."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from pollen.bundle_fields import get, named_reals, reals
from pollen.errors import BundleError

CLASSIFICATION_LOSSES: Final = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
LOSSES: Final = (*CLASSIFICATION_LOSSES, "mse", "mae", "huber")
SMOOTHED_LOSSES: Final = ("categorical_crossentropy", "binary_crossentropy")

OPTIMIZER_SETTINGS: Final[dict[str, frozenset[str]]] = {
    "sgd": frozenset(),
    "momentum": frozenset({"momentum", "nesterov"}),
    "adam": frozenset({"beta_1", "beta_2", "epsilon"}),
    "rmsprop": frozenset({"rho", "momentum", "epsilon", "centered"}),
    "adagrad": frozenset({"initial_accumulator_value", "epsilon"}),
}
CLIPPING: Final = ("clipnorm", "global_clipnorm", "clipvalue")
# Of any optimizer, where Keras has them set.
_OPTIONAL: Final = frozenset({*CLIPPING, "weight_decay"})

SCHEDULE_SETTINGS: Final[dict[str, frozenset[str]]] = {
    "exponential_decay": frozenset({"initial_learning_rate", "decay_steps", "decay_rate", "staircase"}),
    "inverse_time_decay": frozenset({"initial_learning_rate", "decay_steps", "decay_rate", "staircase"}),
    "polynomial_decay": frozenset({"initial_learning_rate", "decay_steps", "end_learning_rate", "power", "cycle"}),
    "cosine_decay": frozenset({"initial_learning_rate", "decay_steps", "alpha"}),
    "cosine_decay_restarts": frozenset({"initial_learning_rate", "first_decay_steps", "t_mul", "m_mul", "alpha"}),
    "piecewise_constant_decay": frozenset(),
}
WARMUP: Final = frozenset({"warmup_target", "warmup_steps"})
MAX_PIECES: Final = 256
# What must not be below 1: lengths in steps, and a factor whose logarithm is taken.
_AT_LEAST_ONE: Final = ("decay_steps", "first_decay_steps", "t_mul")
_FLAGS: Final = ("nesterov", "centered", "staircase", "cycle")


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised: one of `LOSSES`, the mean over the batch of each example's loss times its sample weight.

    `from_logits`: a cross-entropy's outputs are logits, else probabilities. `delta`: where Huber's loss turns from
    quadratic to linear. `label_smoothing`: for `SMOOTHED_LOSSES`, as Keras has it. Raises BundleError.
    """

    name: str
    from_logits: bool
    delta: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise BundleError(f"loss {self.name!r} is not known; known: {', '.join(LOSSES)}")
        if not (math.isfinite(self.delta) and self.delta > 0):
            raise BundleError(f"loss {self.name}: delta must be above 0, not {self.delta}")
        if self.label_smoothing != 0 and (self.name not in SMOOTHED_LOSSES or not 0 < self.label_smoothing <= 1):
            raise BundleError(f"loss {self.name}: label_smoothing {self.label_smoothing} is out of range")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate that depends on the step: a name and the constants `SCHEDULE_SETTINGS` lists, named as in Keras.

    "cosine_decay" may have both of `WARMUP`; "piecewise_constant_decay" has `rates` [n + 1] with `boundaries` [n]
    between them, in steps. Flags are 0.0 or 1.0. Raises BundleError.
    """

    name: str
    settings: dict[str, float] = field(default_factory=dict)
    boundaries: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected = SCHEDULE_SETTINGS.get(self.name)
        if expected is None:
            raise BundleError(f"schedule {self.name!r} is not known; known: {', '.join(SCHEDULE_SETTINGS)}")
        optional = WARMUP if self.name == "cosine_decay" and WARMUP & set(self.settings) else frozenset()
        if set(self.settings) != expected | optional:
            raise BundleError(f"schedule {self.name} takes {sorted(expected | optional)}, not {sorted(self.settings)}")
        _check_settings(f"schedule {self.name}", self.settings)
        pieces = self.name == "piecewise_constant_decay"
        if not (1 <= len(self.boundaries) <= MAX_PIECES if pieces else not self.boundaries and not self.rates):
            raise BundleError(f"schedule {self.name} has {len(self.boundaries)} boundaries, {len(self.rates)} rates")
        for kind, values in (("boundary", self.boundaries), ("rate", self.rates)):
            _check_settings(f"schedule {self.name}", {f"{kind} {place}": value for place, value in enumerate(values)})
        rising = all(a <= b for a, b in pairwise(self.boundaries))
        if pieces and (len(self.rates) != len(self.boundaries) + 1 or not rising):
            raise BundleError(f"schedule {self.name} needs rising boundaries and one rate more than these")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The device's optimizer: its name, and the constants `OPTIMIZER_SETTINGS` lists, named as in Keras.

    `learning_rate`: a constant or a schedule. `settings` may also hold one of `CLIPPING`, and weight_decay (with adam:
    AdamW). Flags are 0.0 or 1.0. Raises BundleError.
    """

    name: str
    learning_rate: float | Schedule
    settings: dict[str, float]

    def __post_init__(self) -> None:
        expected = OPTIMIZER_SETTINGS.get(self.name)
        if expected is None:
            raise BundleError(f"optimizer {self.name!r} is not known; known: {', '.join(OPTIMIZER_SETTINGS)}")
        if set(self.settings) - _OPTIONAL != expected:
            raise BundleError(f"optimizer {self.name} takes {sorted(expected)}, not {sorted(self.settings)}")
        if sum(name in self.settings for name in CLIPPING) > 1:
            raise BundleError(f"optimizer {self.name}: give one of {', '.join(CLIPPING)}")
        rate = self.learning_rate
        if not isinstance(rate, Schedule) and not (math.isfinite(rate) and rate > 0):
            raise BundleError(f"learning rate must be above 0, not {rate}")
        _check_settings(f"optimizer {self.name}", self.settings)


def _check_settings(owner: str, settings: dict[str, float]) -> None:
    """BundleError for a number that is negative, infinite or NaN, or outside what its name allows."""
    for name, value in settings.items():
        allowed = math.isfinite(value) and value >= 0
        if name in ("momentum", "beta_1", "beta_2", "rho"):
            allowed = allowed and value < 1
        elif name == "epsilon":
            allowed = 0 < value <= 1
        elif name in CLIPPING:
            allowed = allowed and value > 0
        elif name in _AT_LEAST_ONE:
            allowed = allowed and value >= 1
        elif name in _FLAGS:
            allowed = value in (0, 1)
        if not allowed:
            raise BundleError(f"{owner}: {name} = {value} is out of range")


def loss_to_map(loss: Loss) -> dict[str, Any]:
    """The loss as a CBOR map."""
    return {
        "name": loss.name,
        "from_logits": loss.from_logits,
        "delta": loss.delta,
        "label_smoothing": loss.label_smoothing,
    }


def loss_from_map(fields: dict[str, Any]) -> Loss:
    """The reverse, for untrusted input. Raises BundleError."""
    return Loss(
        name=get(fields, "name", str),
        from_logits=get(fields, "from_logits", bool),
        delta=get(fields, "delta", float),
        label_smoothing=get(fields, "label_smoothing", float),
    )


def optimizer_to_map(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer as a CBOR map; a constant learning rate as a number, a schedule as a map."""
    rate: Any = optimizer.learning_rate
    if isinstance(rate, Schedule):
        rate = {
            "name": rate.name,
            "settings": rate.settings,
            "boundaries": rate.boundaries,
            "rates": rate.rates,
        }
    return {"name": optimizer.name, "learning_rate": rate, "settings": optimizer.settings}


def optimizer_from_map(fields: dict[str, Any]) -> Optimizer:
    """The reverse, for untrusted input. Raises BundleError."""
    rate: float | Schedule
    if isinstance(fields.get("learning_rate"), dict):
        schedule = fields["learning_rate"]
        rate = Schedule(
            name=get(schedule, "name", str),
            settings=named_reals(schedule, "settings"),
            boundaries=reals(schedule, "boundaries"),
            rates=reals(schedule, "rates"),
        )
    else:
        rate = get(fields, "learning_rate", float)
    return Optimizer(name=get(fields, "name", str), learning_rate=rate, settings=named_reals(fields, "settings"))
