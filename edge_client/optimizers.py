"""Optimizers on flat float32 weight vectors, in place, by Keras 3's formulas (keras.optimizers.SGD, Adam).

With learning rate α, gradient g, weights w, step t = 1, 2, …:

    SGD        w ← w - α g
    Momentum   m ← μ m - α g;   w ← w + m;   with Nesterov: w ← w + μ m - α g
    Adam       m ← m + (1 - β1)(g - m);   v ← v + (1 - β2)(g² - v)
               w ← w - m αt / (√v + ε)    where αt = α √(1 - β2^t) / (1 - β1^t)

Sutskever et al. 2013 (momentum); Kingma & Ba 2015, the form before section 2.1, whose ε stands outside (Adam).
"""

from typing import Protocol

import numpy as np

from pollen.bundle import Floats
from pollen.manifest import Optimizer


class Stepper(Protocol):
    """An optimizer with its state, for one weight vector float32 [P]."""

    def step(self, w: Floats, g: Floats) -> None:
        """Move `w` [P] in place by one step along the gradient `g` [P], which is left as it is."""


def make(optimizer: Optimizer, parameters: int) -> Stepper:
    """The optimizer that a bundle's manifest describes, with fresh state, for `parameters` weights."""
    settings = optimizer.settings
    if optimizer.name == "sgd":
        return SGD(optimizer.learning_rate, parameters)
    if optimizer.name == "momentum":
        nesterov = settings["nesterov"] != 0
        return Momentum(optimizer.learning_rate, settings["momentum"], nesterov, parameters)
    if optimizer.name == "adam":
        beta_1, beta_2, epsilon = (settings[name] for name in ("beta_1", "beta_2", "epsilon"))
        return Adam(optimizer.learning_rate, beta_1, beta_2, epsilon, parameters)
    raise ValueError(f"optimizer {optimizer.name!r} is not known")


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

    def __init__(self, learning_rate: float, parameters: int) -> None:
        self._rate = np.float32(learning_rate)
        self._scratch = np.empty(parameters, np.float32)

    def step(self, w: Floats, g: Floats) -> None:
        """Move `w` [P] in place by one step."""
        np.multiply(g, self._rate, out=self._scratch)
        w -= self._scratch


class Momentum:
    """m ← μ m - α g, then w ← w + m, or with Nesterov w ← w + μ m - α g."""

    def __init__(self, learning_rate: float, momentum: float, nesterov: bool, parameters: int) -> None:
        self._rate = np.float32(learning_rate)
        self._momentum = np.float32(momentum)
        self._nesterov = nesterov
        self._velocity = np.zeros(parameters, np.float32)
        self._scratch = np.empty(parameters, np.float32)

    def step(self, w: Floats, g: Floats) -> None:
        """Move `w` [P] in place by one step."""
        velocity, scratch = self._velocity, self._scratch
        np.multiply(g, self._rate, out=scratch)
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

    def __init__(self, learning_rate: float, beta_1: float, beta_2: float, epsilon: float, parameters: int) -> None:
        self._rate = np.float32(learning_rate)
        self._beta_1 = np.float32(beta_1)
        self._beta_2 = np.float32(beta_2)
        # Keras subtracts in Python's float64, then rounds.
        self._new_1 = np.float32(1 - beta_1)
        self._new_2 = np.float32(1 - beta_2)
        self._epsilon = np.float32(epsilon)
        self._steps = 0
        self._mean = np.zeros(parameters, np.float32)
        self._square = np.zeros(parameters, np.float32)
        self._scratch = np.empty(parameters, np.float32)

    def step(self, w: Floats, g: Floats) -> None:
        """Move `w` [P] in place by one step."""
        mean, square, scratch = self._mean, self._square, self._scratch
        self._steps += 1
        one, time = np.float32(1), np.float32(self._steps)
        rate = self._rate * np.sqrt(one - self._beta_2**time) / (one - self._beta_1**time)

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
        scratch *= rate
        w -= scratch
