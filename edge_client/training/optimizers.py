"""Optimizers on flat float32 weight vectors, in place, by Keras 3's formulas (keras.optimizers).

With learning rate α, gradient g, weights w, step t = 1, 2, …:

    SGD        w ← w - α g
    Momentum   m ← μ m - α g;   w ← w + m;   with Nesterov: w ← w + μ m - α g
    Adam       m ← m + (1 - β1)(g - m);   v ← v + (1 - β2)(g² - v)
               w ← w - m αt / (√v + ε)    where αt = α √(1 - β2^t) / (1 - β1^t)
    RMSprop    v ← ρ v + (1 - ρ) g²;   d = α g / √(v + ε);   w ← w - d, or with momentum m ← μ m + d;   w ← w - m
               centred: a ← ρ a + (1 - ρ) g, and v + ε becomes v - a² + ε
    Adagrad    a ← a + g²;   w ← w - α g / √(a + ε)

Sutskever et al. 2013 (momentum); Kingma & Ba 2015, the form before section 2.1, whose ε stands outside (Adam);
Hinton 2012, Neural Networks for Machine Learning, lecture 6e (RMSprop); Graves 2013, section 2.1 (centred, momentum);
Duchi et al. 2011, section 1.1 (Adagrad); Loshchilov & Hutter 2019, algorithm 2 (decoupled weight decay: AdamW).
"""

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from edge_client.training import schedules
from edge_client.training.clipping import Clipping
from pollen.bundle import Floats
from pollen.manifest import Manifest
from pollen.objective import Optimizer, Schedule


class Rule(Protocol):
    """One optimizer's formula with its state, for one weight vector float32 [P]."""

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step of learning rate `rate` along `g` [P], which is left as it is."""


class Stepper:
    """An optimizer with its state: the schedule's rate, clipping, weight decay and the step, in Keras's order."""

    def __init__(self, optimizer: Optimizer, manifest: Manifest, steps_done: int, rate_factor: float) -> None:
        self._learning_rate = optimizer.learning_rate
        self._factor = np.float32(rate_factor)
        self._clipping = Clipping(optimizer, [tensor.size for tensor in manifest.weights])
        self._decay = np.float32(optimizer.settings.get("weight_decay", 0.0))
        self._decayed = np.empty(manifest.parameters if self._decay else 0, np.float32)
        self._steps = steps_done
        self._rule = _RULES[optimizer.name](optimizer.settings, manifest.parameters)

    def step(self, w: Floats, g: Floats) -> None:
        """Move `w` [P] in place by one step along the gradient `g` [P], which is clipped in place."""
        rate = self._rate()
        self._steps += 1
        self._clipping.apply(g)
        if self._decay:
            np.multiply(w, self._decay, out=self._decayed)
            self._decayed *= rate
            w -= self._decayed
        self._rule.update(w, g, rate)

    def _rate(self) -> np.float32:
        learning_rate = self._learning_rate
        if isinstance(learning_rate, Schedule):
            return schedules.rate(learning_rate, self._steps) * self._factor
        return np.float32(learning_rate) * self._factor


def make(optimizer: Optimizer, manifest: Manifest, *, steps_done: int = 0, rate_factor: float = 1.0) -> Stepper:
    """`optimizer` with fresh state for the weights of `manifest`; its schedule goes on after `steps_done` steps, and
    every learning rate is multiplied by `rate_factor`."""
    return Stepper(optimizer, manifest, steps_done, rate_factor)


def add_proximal(g: Floats, w: Floats, w0: Floats, mu: float) -> None:
    """Add FedProx's proximal term to the gradient in place: g ← g + μ (w - w0).

    The gradient of μ/2 ‖w - w0‖² (Li et al. 2020, Federated Optimization in Heterogeneous Networks, equation 2);
    `w0` are the weights that the device received. All float32 [P].
    """
    pull = w - w0
    pull *= np.float32(mu)
    g += pull


class SGD:
    """w ← w - α g."""

    def __init__(self, _settings: dict[str, float], parameters: int) -> None:
        self._scratch = np.empty(parameters, np.float32)

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step."""
        np.multiply(g, rate, out=self._scratch)
        w -= self._scratch


class Momentum:
    """m ← μ m - α g, then w ← w + m, or with Nesterov w ← w + μ m - α g."""

    def __init__(self, settings: dict[str, float], parameters: int) -> None:
        self._momentum = np.float32(settings["momentum"])
        self._nesterov = settings["nesterov"] != 0
        self._velocity = np.zeros(parameters, np.float32)
        self._scratch = np.empty(parameters, np.float32)

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step."""
        velocity, scratch = self._velocity, self._scratch
        np.multiply(g, rate, out=scratch)
        velocity *= self._momentum
        velocity -= scratch
        if not self._nesterov:
            w += velocity
            return
        w -= scratch
        np.multiply(velocity, self._momentum, out=scratch)
        w += scratch


class Adam:
    """Moments with bias correction folded into the rate; the powers of β in float32, as Keras has them."""

    def __init__(self, settings: dict[str, float], parameters: int) -> None:
        self._beta_1 = np.float32(settings["beta_1"])
        self._beta_2 = np.float32(settings["beta_2"])
        # Keras subtracts in Python's float64, then rounds.
        self._new_1 = np.float32(1 - settings["beta_1"])
        self._new_2 = np.float32(1 - settings["beta_2"])
        self._epsilon = np.float32(settings["epsilon"])
        self._steps = 0
        self._mean = np.zeros(parameters, np.float32)
        self._square = np.zeros(parameters, np.float32)
        self._scratch = np.empty(parameters, np.float32)

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step."""
        mean, square, scratch = self._mean, self._square, self._scratch
        self._steps += 1
        one, time = np.float32(1), np.float32(self._steps)
        corrected = rate * np.sqrt(one - self._beta_2**time) / (one - self._beta_1**time)

        np.subtract(g, mean, out=scratch)
        scratch *= self._new_1
        mean += scratch

        np.multiply(g, g, out=scratch)
        scratch -= square
        scratch *= self._new_2
        square += scratch

        np.sqrt(square, out=scratch)
        scratch += self._epsilon
        np.divide(mean, scratch, out=scratch)
        scratch *= corrected
        w -= scratch


class RMSprop:
    """Each gradient divided by the root of its faded mean square, or centred of its faded variance."""

    def __init__(self, settings: dict[str, float], parameters: int) -> None:
        self._rho = np.float32(settings["rho"])
        self._new = np.float32(1 - settings["rho"])
        self._momentum = np.float32(settings["momentum"])
        self._epsilon = np.float32(settings["epsilon"])
        self._square = np.zeros(parameters, np.float32)
        self._velocity = np.zeros(parameters if self._momentum else 0, np.float32)
        self._mean = np.zeros(parameters, np.float32) if settings["centered"] else None
        self._scratch = np.empty(parameters, np.float32)

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step."""
        square, scratch = self._square, self._scratch
        np.multiply(g, g, out=scratch)
        scratch *= self._new
        square *= self._rho
        square += scratch
        if self._mean is None:
            np.add(square, self._epsilon, out=scratch)
        else:
            np.multiply(g, self._new, out=scratch)
            self._mean *= self._rho
            self._mean += scratch
            np.multiply(self._mean, self._mean, out=scratch)
            np.subtract(square, scratch, out=scratch)
            scratch += self._epsilon
        np.sqrt(scratch, out=scratch)
        np.divide(g, scratch, out=scratch)
        scratch *= rate
        if not self._momentum:
            w -= scratch
            return
        self._velocity *= self._momentum
        self._velocity += scratch
        w -= self._velocity


class Adagrad:
    """Each gradient divided by the root of the sum of its squares so far."""

    def __init__(self, settings: dict[str, float], parameters: int) -> None:
        self._epsilon = np.float32(settings["epsilon"])
        self._squares = np.full(parameters, settings["initial_accumulator_value"], np.float32)
        self._scratch = np.empty(parameters, np.float32)

    def update(self, w: Floats, g: Floats, rate: np.float32) -> None:
        """Move `w` [P] in place by one step."""
        scratch = self._scratch
        np.multiply(g, g, out=scratch)
        self._squares += scratch
        np.add(self._squares, self._epsilon, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(g, scratch, out=scratch)
        scratch *= rate
        w -= scratch


_RULES: Final[dict[str, Callable[[dict[str, float], int], Rule]]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}
