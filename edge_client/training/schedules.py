"""Learning-rate schedules by Keras 3's formulas (keras.optimizers.schedules), in float32 as there.

With first rate α0, step t = 0, 1, …, decay steps T, and p = t / T (its whole part with staircase):

    exponential     α = α0 r^p
    inverse time    α = α0 / (1 + r p)
    polynomial      α = (α0 - α1)(1 - min(t, T) / T)^q + α1; with cycle T becomes the next multiple of T from t on
    cosine          α = α0 ((1 - a)(1 + cos π min(t, T) / T) / 2 + a), after a linear warmup where there is one
    restarts        the same from each restart on, over periods that grow by t_mul from rates that grow by m_mul
    piecewise       α = the rate of the first boundary that t isn't past

Loshchilov & Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts (cosine and restarts).
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from pollen.objective import Schedule

_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_PI: Final = np.float32(np.pi)

Settings = Mapping[str, np.float32]


def rate(schedule: Schedule, step: int) -> np.float32:
    """The learning rate of a step; `step` counts from 0."""
    if schedule.name == "piecewise_constant_decay":
        return np.float32(schedule.rates[sum(step > boundary for boundary in schedule.boundaries)])
    settings = {name: np.float32(value) for name, value in schedule.settings.items()}
    with np.errstate(all="ignore"):  # a rate that overflows makes training diverge, which is found there
        return np.float32(_SCHEDULES[schedule.name](settings, np.float32(step)))


def _exponential(settings: Settings, step: np.float32) -> np.float32:
    return settings["initial_learning_rate"] * settings["decay_rate"] ** _passed(settings, step)


def _inverse_time(settings: Settings, step: np.float32) -> np.float32:
    return settings["initial_learning_rate"] / (_ONE + settings["decay_rate"] * _passed(settings, step))


def _passed(settings: Settings, step: np.float32) -> np.float32:
    share = step / settings["decay_steps"]
    return np.floor(share) if settings["staircase"] else share


def _polynomial(settings: Settings, step: np.float32) -> np.float32:
    steps, end = settings["decay_steps"], settings["end_learning_rate"]
    if not settings["cycle"]:
        step = min(step, steps)
    elif step > 0:
        steps = steps * np.ceil(step / steps)
    return (settings["initial_learning_rate"] - end) * (_ONE - step / steps) ** settings["power"] + end


def _cosine(settings: Settings, step: np.float32) -> np.float32:
    steps, first, alpha = settings["decay_steps"], settings["initial_learning_rate"], settings["alpha"]
    if "warmup_target" in settings:
        target, warmup = settings["warmup_target"], settings["warmup_steps"]
        if step < warmup:
            return (target - first) * (step / warmup) + first
        step, first = step - warmup, target
    return first * ((_ONE - alpha) * _half_cosine(min(step, steps) / steps) + alpha)


def _cosine_restarts(settings: Settings, step: np.float32) -> np.float32:
    growth, alpha = settings["t_mul"], settings["alpha"]
    share = step / settings["first_decay_steps"]
    if growth == 1:
        restarts = np.floor(share)
        share = share - restarts
    else:
        restarts = np.floor(np.log(_ONE - share * (_ONE - growth)) / np.log(growth))
        begun = (_ONE - growth**restarts) / (_ONE - growth)
        share = (share - begun) / growth**restarts
    factor = settings["m_mul"] ** restarts * _half_cosine(share)
    return np.float32(settings["initial_learning_rate"] * ((_ONE - alpha) * factor + alpha))


def _half_cosine(share: np.float32) -> np.float32:
    return np.float32(_HALF * (_ONE + np.cos(_PI * share)))


_SCHEDULES: Final[dict[str, Callable[[Settings, np.float32], np.float32]]] = {
    "exponential_decay": _exponential,
    "inverse_time_decay": _inverse_time,
    "polynomial_decay": _polynomial,
    "cosine_decay": _cosine,
    "cosine_decay_restarts": _cosine_restarts,
}
