import importlib.util
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_client.training import optimizers, schedules
from pollen.errors import BundleError
from pollen.manifest import Manifest, Tensor
from pollen.objective import Optimizer, Schedule
from tests.pollen.manifests import manifest

SGD = Optimizer("sgd", 0.1, {})
MOMENTUM = Optimizer("momentum", 0.1, {"momentum": 0.9, "nesterov": 0.0})
NESTEROV = Optimizer("momentum", 0.1, {"momentum": 0.9, "nesterov": 1.0})
ADAM = Optimizer("adam", 0.1, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7})
RMSPROP = Optimizer("rmsprop", 0.01, {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "centered": 0.0})
CENTRED = Optimizer("rmsprop", 0.01, {"rho": 0.9, "momentum": 0.5, "epsilon": 1e-2, "centered": 1.0})
ADAGRAD = Optimizer("adagrad", 1.0, {"initial_accumulator_value": 0.1, "epsilon": 1e-7})
NAMED = {
    "sgd": SGD,
    "momentum": MOMENTUM,
    "nesterov": NESTEROV,
    "adam": ADAM,
    "rmsprop": RMSPROP,
    "centred": CENTRED,
    "adagrad": ADAGRAD,
}
ALL = pytest.mark.parametrize("optimizer", NAMED.values(), ids=list(NAMED))


def _floats(*values: float) -> Any:
    return np.array(values, np.float32)


def _manifest(*sizes: int) -> Manifest:
    """A model of tensors of these sizes."""
    return manifest(*(Tensor(f"dense/{index}", (size,)) for index, size in enumerate(sizes)))


def _with(optimizer: Optimizer, **settings: float) -> Optimizer:
    return replace(optimizer, settings=optimizer.settings | settings)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        # g = 1, then 2, from w = 0, by hand.
        (SGD, [-0.1, -0.3]),
        (MOMENTUM, [-0.1, -0.1 - 0.29]),
        (NESTEROV, [-0.19, -0.19 - 0.461]),
        # The first step is α whatever the gradient; then m = 0.29, v = 0.004999, αt = 0.1 √(1 - 0.999²) / 0.19.
        (ADAM, [-0.1, -0.1 - 0.1 * np.sqrt(0.001999) / 0.19 * 0.29 / np.sqrt(0.004999)]),
        # v = 0.1, then 0.49.
        (RMSPROP, [-0.01 / np.sqrt(0.1), -0.01 / np.sqrt(0.1) - 0.02 / np.sqrt(0.49)]),
        # v - a² = 0.1 - 0.1², then 0.49 - 0.29²; half of the first step goes on.
        (CENTRED, [-0.01 / np.sqrt(0.1), -0.015 / np.sqrt(0.1) - 0.02 / np.sqrt(0.4159)]),
        # a = 1.1, then 5.1.
        (ADAGRAD, [-1 / np.sqrt(1.1), -1 / np.sqrt(1.1) - 2 / np.sqrt(5.1)]),
    ],
    ids=list(NAMED),
)
def test_two_steps_follow_the_formula(optimizer: Optimizer, expected: list[float]) -> None:
    w = _floats(0)
    stepper = optimizers.make(optimizer, _manifest(1))
    seen = []
    for g in (1, 2):
        stepper.step(w, _floats(g))
        seen.append(float(w[0]))
    np.testing.assert_allclose(seen, expected, rtol=1e-4)


@ALL
def test_a_step_is_in_place_and_leaves_the_gradient(optimizer: Optimizer) -> None:
    w, g = _floats(1, 2, 3), _floats(0.5, -0.5, 0)
    before = w
    optimizers.make(optimizer, _manifest(3)).step(w, g)
    assert w is before
    assert w.dtype == np.float32
    assert w[0] < 1
    assert w[1] > 2
    assert w[2] == 3
    np.testing.assert_array_equal(g, _floats(0.5, -0.5, 0))


@ALL
@pytest.mark.parametrize("more", [{}, {"clipnorm": 1.0}, {"clipvalue": 1.0}, {"global_clipnorm": 1.0}])
def test_a_step_allocates_nothing_of_the_weights_size(optimizer: Optimizer, more: dict[str, float]) -> None:
    size = 1_000_000
    w, g = np.zeros(size, np.float32), np.ones(size, np.float32)
    stepper = optimizers.make(_with(optimizer, **more, weight_decay=0.1), _manifest(size // 2, size // 2))
    tracemalloc.start()
    stepper.step(w, g)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size


@ALL
def test_every_optimizer_finds_the_minimum_of_a_parabola(optimizer: Optimizer) -> None:
    w, target = _floats(5, -3), _floats(1, 2)
    stepper = optimizers.make(optimizer, _manifest(2))
    for _ in range(800):
        stepper.step(w, w - target)
    np.testing.assert_allclose(w, target, atol=0.02)


def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance() -> None:
    g, w, w0 = _floats(1, 1), _floats(3, 0), _floats(1, 4)
    optimizers.add_proximal(g, w, w0, 0.5)
    np.testing.assert_array_equal(g, _floats(2, -1))
    np.testing.assert_array_equal(w, _floats(3, 0))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"clipvalue": 2.0}, [2, -2, 1, 0]),
        # Two tensors, of norms 5 and 1.
        ({"clipnorm": 2.0}, [1.2, -1.6, 1, 0]),
        # Of norm √26 together.
        ({"global_clipnorm": np.sqrt(26) / 2}, [1.5, -2, 0.5, 0]),
        ({"global_clipnorm": 6.0}, [3, -4, 1, 0]),
    ],
)
def test_clipping_goes_before_the_step(settings: dict[str, float], expected: list[float]) -> None:
    w = np.zeros(4, np.float32)
    optimizers.make(_with(replace(SGD, learning_rate=1.0), **settings), _manifest(2, 2)).step(w, _floats(3, -4, 1, 0))
    np.testing.assert_allclose(w, -np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("kind", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_a_gradient_of_zero_stays_zero_when_clipped(kind: str) -> None:
    w = _floats(1, 2)
    optimizers.make(_with(SGD, **{kind: 1.0}), _manifest(1, 1)).step(w, _floats(0, 0))
    np.testing.assert_array_equal(w, _floats(1, 2))


def test_weights_decay_by_the_rate_before_the_step() -> None:
    w = _floats(10)
    optimizers.make(_with(SGD, weight_decay=0.5), _manifest(1)).step(w, _floats(1))
    assert w[0] == pytest.approx(10 - 10 * 0.5 * 0.1 - 0.1)


def test_a_schedule_goes_on_where_the_device_stopped_and_a_constant_takes_its_place() -> None:
    halving = Schedule(
        "exponential_decay",
        {"initial_learning_rate": 1.0, "decay_steps": 10.0, "decay_rate": 0.5, "staircase": 1.0},
    )
    assert [float(schedules.rate(halving, step)) for step in (0, 9, 10, 29, 30)] == [1, 1, 0.5, 0.25, 0.125]
    scheduled = replace(SGD, learning_rate=halving)
    w = _floats(0)
    stepper = optimizers.make(scheduled, _manifest(1), steps_done=9)
    for expected in (-1, -1.5):
        stepper.step(w, _floats(1))
        assert w[0] == expected
    optimizers.make(replace(scheduled, learning_rate=0.25), _manifest(1), steps_done=9).step(w, _floats(1))
    assert w[0] == -1.75


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="Keras needs TensorFlow")
def test_schedules_are_keras_at_every_step() -> None:
    import keras

    from pollen.compiler import optimizers as compiled

    make = keras.optimizers.schedules
    for schedule in (
        make.ExponentialDecay(0.3, 70, 0.6),
        make.InverseTimeDecay(0.3, 70, 0.6, staircase=True),
        make.PolynomialDecay(0.3, 70, 0.02, power=0.5),
        make.PolynomialDecay(0.3, 70, 0.02, cycle=True),
        make.CosineDecay(0.3, 150),
        make.CosineDecay(0.1, 100, 0.2, warmup_target=0.4, warmup_steps=30),
        make.CosineDecay(0.1, 100, 0.2, warmup_target=0.4, warmup_steps=0),
        make.CosineDecayRestarts(0.3, 13),
        make.CosineDecayRestarts(0.3, 13, t_mul=1.0, m_mul=0.7, alpha=0.1),
        make.PiecewiseConstantDecay([10, 50, 51], [0.4, 0.3, 0.2, 0.1]),
    ):
        described = compiled.parse(keras.optimizers.SGD(schedule), None).learning_rate
        assert isinstance(described, Schedule)
        for step in range(200):
            expected = float(np.asarray(schedule(np.int64(step))))
            assert float(schedules.rate(described, step)) == pytest.approx(expected, rel=1e-4, abs=1e-7), (
                described,
                step,
            )


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(BundleError, match="'lion' is not known"):
        Optimizer("lion", 0.1, {})
