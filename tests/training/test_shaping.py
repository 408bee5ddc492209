"""Layers that shape, scale and join tensors train on the device as in Keras."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.training.case import Case


def _adapted(layer: Any) -> Any:
    layer.adapt(np.random.default_rng(0).standard_normal((50, 8, 4)) * 2 + 1)
    return layer


OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.05, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
PLANE, LINE, POINT = (5, 6, 3), (8, 4), (12,)
KINDS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "Reshape": (LINE, lambda of: of.Reshape((2, -1))),
    "Permute": (LINE, lambda of: of.Permute((2, 1))),
    "Permute, three axes": (PLANE, lambda of: of.Permute((3, 1, 2))),
    "RepeatVector": (POINT, lambda of: of.RepeatVector(3)),
    "ZeroPadding1D": (LINE, lambda of: of.ZeroPadding1D((2, 1))),
    "ZeroPadding2D": (PLANE, lambda of: of.ZeroPadding2D(((1, 0), (2, 3)))),
    "Cropping1D": (LINE, lambda of: of.Cropping1D((2, 1))),
    "Cropping2D": (PLANE, lambda of: of.Cropping2D(((1, 2), (0, 3)))),
    "UpSampling1D": (LINE, lambda of: of.UpSampling1D(3)),
    "UpSampling2D": (PLANE, lambda of: of.UpSampling2D((2, 3))),
    "Rescaling": (LINE, lambda of: of.Rescaling(1 / 3, offset=-0.25)),
    "Rescaling of channels": (LINE, lambda of: of.Rescaling([0.5, 1.0, 2.0, 3.0], offset=[0.0, 1.0, 2.0, 3.0])),
    "Normalization": (LINE, lambda of: of.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 3.0, 4.0])),
    "Normalization of all": (LINE, lambda of: of.Normalization(axis=None, mean=0.5, variance=2.0)),
    "Normalization inverted": (LINE, lambda of: of.Normalization(mean=0.5, variance=2.0, invert=True)),
    "Normalization, adapted": (LINE, lambda of: _adapted(of.Normalization())),
    "Normalization, adapted to all": (LINE, lambda of: _adapted(of.Normalization(axis=None))),
    "Identity": (LINE, lambda of: of.Identity()),
}
JOINING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")


@pytest.mark.parametrize("name", KINDS)
def test_a_shape(agrees: Any, name: str) -> None:
    shape, make = KINDS[name]

    def build(layers: Any) -> list[Any]:
        return [
            layers.Input(shape),
            layers.Dense(shape[-1], activation="tanh"),
            make(layers),
            layers.Dense(5, activation="tanh"),
            layers.Flatten(),
            layers.Dense(5),
        ]

    agrees(name, Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


@pytest.mark.parametrize("name", JOINING)
def test_joining_two(agrees: Any, name: str) -> None:
    def build(layers: Any) -> Any:
        import keras

        reading = layers.Input(LINE)
        # Behind a ReLU both are zero in places, where neither is the larger.
        left, right = layers.Dense(6, activation="relu")(reading), layers.Dense(6, activation="relu")(reading)
        joined = layers.Flatten()(getattr(layers, name)()([left, right]))
        return keras.Model(reading, layers.Dense(5)(joined))

    agrees(f"{name} of two", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name in JOINING if name not in ("Subtract", "Concatenate")])
def test_joining_three_of_which_one_is_broadcast(agrees: Any, name: str) -> None:
    def build(layers: Any) -> Any:
        import keras

        reading = layers.Input(LINE)
        left, right = layers.Dense(6, activation="tanh")(reading), layers.Dense(6)(reading)
        gate = layers.GlobalAveragePooling1D(keepdims=True)(right)
        joined = layers.Flatten()(getattr(layers, name)()([left, right, gate]))
        return keras.Model(reading, layers.Dense(5)(joined))

    agrees(f"{name} of three", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_concatenating_along_the_first_axis(agrees: Any) -> None:
    def build(layers: Any) -> Any:
        import keras

        reading = layers.Input(LINE)
        parts = [layers.Dense(6, activation="tanh")(reading) for _ in range(2)]
        joined = layers.Conv1D(4, 3)(layers.Concatenate(axis=1)([*parts, layers.Cropping1D(2)(parts[0])]))
        return keras.Model(reading, layers.Dense(5)(layers.Flatten()(joined)))

    agrees("Concatenate, axis 1", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)
