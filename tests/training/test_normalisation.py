"""Normalisation layers train on the device as in Keras, moving averages included."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.training.case import BATCH, STEPS, Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.02),
    lambda optimizers: optimizers.SGD(0.01, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
Build = Callable[[Any], list[Any]]


def _after_dense(normalisation: Callable[[Any], Any], *, bias: bool = False) -> Build:
    return lambda layers: [
        layers.Input((12,)),
        layers.Dense(24, use_bias=bias),
        normalisation(layers),
        layers.Activation("relu"),
        layers.Dense(4),
    ]


def _of_sequence(normalisation: Callable[[Any], Any]) -> Build:
    return lambda layers: [
        layers.Input((10, 6)),
        layers.Conv1D(8, 3, use_bias=False),
        normalisation(layers),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dense(4),
    ]


def _of_image(normalisation: Callable[[Any], Any]) -> Build:
    return lambda layers: [
        layers.Input((6, 5, 2)),
        layers.Conv2D(8, 3, padding="same", use_bias=False),
        normalisation(layers),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dense(4),
    ]


BATCH_NORMALISATION: dict[str, Build] = {
    "after Dense": _after_dense(lambda layers: layers.BatchNormalization()),
    "momentum 0.5, epsilon 0.1": _after_dense(lambda layers: layers.BatchNormalization(momentum=0.5, epsilon=0.1)),
    "no scale": _after_dense(lambda layers: layers.BatchNormalization(scale=False)),
    "no centre": _after_dense(lambda layers: layers.BatchNormalization(center=False)),
    "of a sequence": _of_sequence(lambda layers: layers.BatchNormalization(momentum=0.9)),
    "axis 1 of a sequence": _of_sequence(lambda layers: layers.BatchNormalization(axis=1)),
    "of an image": _of_image(lambda layers: layers.BatchNormalization()),
    "axis 1 of an image": _of_image(lambda layers: layers.BatchNormalization(axis=1)),
}
WITHIN_EXAMPLE: dict[str, Build] = {
    "layer": _after_dense(lambda layers: layers.LayerNormalization()),
    "layer, no scale": _after_dense(lambda layers: layers.LayerNormalization(scale=False, epsilon=0.01)),
    "layer, no centre": _after_dense(lambda layers: layers.LayerNormalization(center=False)),
    "layer, of a sequence": _of_sequence(lambda layers: layers.LayerNormalization()),
    "layer, axis 1": _of_sequence(lambda layers: layers.LayerNormalization(axis=1)),
    "layer, axes 1 and 2": _of_sequence(lambda layers: layers.LayerNormalization(axis=[1, 2])),
    "layer, of an image": _of_image(lambda layers: layers.LayerNormalization(axis=[1, 2, 3])),
    "rms_scaling": _after_dense(lambda layers: layers.LayerNormalization(rms_scaling=True)),
    "RMS": _after_dense(lambda layers: layers.RMSNormalization()),
    "RMS, axes 1 and 2": _of_sequence(lambda layers: layers.RMSNormalization(axis=[1, 2])),
    "group": _after_dense(lambda layers: layers.GroupNormalization(6)),
    "group, of a sequence": _of_sequence(lambda layers: layers.GroupNormalization(2)),
    "group, one channel each": _of_image(lambda layers: layers.GroupNormalization(-1)),
    "group, axis 1": _of_sequence(lambda layers: layers.GroupNormalization(4, axis=1)),
    "unit": _after_dense(lambda layers: layers.UnitNormalization()),
    "unit, axes 1 and 2": _of_sequence(lambda layers: layers.UnitNormalization(axis=[1, 2])),
}


@pytest.mark.parametrize("name", BATCH_NORMALISATION)
def test_batch_normalisation_and_its_moving_averages(agrees: Any, name: str) -> None:
    agrees(f"BatchNorm {name}", Case(BATCH_NORMALISATION[name]), OPTIMIZERS)


def test_a_bias_that_batch_normalisation_cancels(agrees: Any) -> None:
    # Its gradient is 0 but for rounding, which Adam would make whole steps of, in Keras as on the device.
    build = _after_dense(lambda layers: layers.BatchNormalization(), bias=True)
    agrees("BatchNorm after a bias", Case(build), OPTIMIZERS[:2])


@pytest.mark.parametrize("name", WITHIN_EXAMPLE)
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_normalisation_within_each_example(agrees: Any, name: str) -> None:
    agrees(f"Norm {name}", Case(WITHIN_EXAMPLE[name]), OPTIMIZERS)


def test_inputs_far_from_zero(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [layers.Input((6,)), layers.BatchNormalization(), layers.Dense(8, "tanh"), layers.Dense(2)]

    def far(rng: np.random.Generator) -> Any:
        return rng.standard_normal((STEPS, BATCH, 6), np.float32) * np.float32(3) + np.float32(20)

    agrees("BatchNorm of inputs around 20", Case(build, x=far), OPTIMIZERS)
