import tracemalloc

import numpy as np
import pytest

from edge_client import optimizers
from pollen.manifest import Optimizer

SGD = Optimizer("sgd", 0.1, {})
MOMENTUM = Optimizer("momentum", 0.1, {"momentum": 0.9, "nesterov": 0.0})
NESTEROV = Optimizer("momentum", 0.1, {"momentum": 0.9, "nesterov": 1.0})
ADAM = Optimizer("adam", 0.1, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7})
ALL = pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, NESTEROV, ADAM], ids=["sgd", "momentum", "nesterov", "adam"])


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        # g = 1, then 2, from w = 0, by hand.
        (SGD, [-0.1, -0.3]),
        (MOMENTUM, [-0.1, -0.1 - 0.29]),
        (NESTEROV, [-0.19, -0.19 - 0.461]),
        # The first step is α whatever the gradient; then m = 0.29, v = 0.004999, αt = 0.1 √(1 - 0.999²) / 0.19.
        (ADAM, [-0.1, -0.1 - 0.1 * np.sqrt(0.001999) / 0.19 * 0.29 / np.sqrt(0.004999)]),
    ],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_two_steps_follow_the_formula(optimizer: Optimizer, expected: list[float]) -> None:
    w = _floats(0)
    stepper = optimizers.make(optimizer, 1)
    seen = []
    for g in (1, 2):
        stepper.step(w, _floats(g))
        seen.append(float(w[0]))
    np.testing.assert_allclose(seen, expected, rtol=1e-4)


@ALL
def test_a_step_is_in_place_and_leaves_the_gradient(optimizer: Optimizer) -> None:
    w, g = _floats(1, 2, 3), _floats(0.5, -0.5, 0)
    before = w
    optimizers.make(optimizer, 3).step(w, g)
    assert w is before
    assert w.dtype == np.float32
    assert w[0] < 1
    assert w[1] > 2
    assert w[2] == 3
    np.testing.assert_array_equal(g, _floats(0.5, -0.5, 0))


@ALL
def test_a_step_allocates_nothing_of_the_weights_size(optimizer: Optimizer) -> None:
    size = 1_000_000
    w, g = np.zeros(size, np.float32), np.ones(size, np.float32)
    stepper = optimizers.make(optimizer, size)
    tracemalloc.start()
    stepper.step(w, g)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size


@ALL
def test_every_optimizer_finds_the_minimum_of_a_parabola(optimizer: Optimizer) -> None:
    w, target = _floats(5, -3), _floats(1, 2)
    stepper = optimizers.make(optimizer, 2)
    for _ in range(400):
        stepper.step(w, w - target)
    np.testing.assert_allclose(w, target, atol=0.02)


def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance() -> None:
    g, w, w0 = _floats(1, 1), _floats(3, 0), _floats(1, 4)
    optimizers.add_proximal(g, w, w0, 0.5)
    np.testing.assert_array_equal(g, _floats(2, -1))
    np.testing.assert_array_equal(w, _floats(3, 0))


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'lion' is not known"):
        optimizers.make(Optimizer("lion", 0.1, {}), 1)
