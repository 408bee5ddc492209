"""Models with pooling train on the device as in Keras."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.training.case import Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.05, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
PLANE, LINE = (9, 8, 4), (17, 4)
KINDS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "MaxPooling2D": (PLANE, lambda of: of.MaxPooling2D()),
    "MaxPooling2D same": (PLANE, lambda of: of.MaxPooling2D((2, 3), padding="same")),
    "MaxPooling2D overlapping": (PLANE, lambda of: of.MaxPooling2D(3, strides=2, padding="same")),
    "MaxPooling2D with gaps": (PLANE, lambda of: of.MaxPooling2D(2, strides=3)),
    "MaxPooling1D": (LINE, lambda of: of.MaxPooling1D(2)),
    "MaxPooling1D overlapping": (LINE, lambda of: of.MaxPooling1D(3, strides=1, padding="same")),
    "AveragePooling2D": (PLANE, lambda of: of.AveragePooling2D((3, 2))),
    "AveragePooling2D overlapping": (PLANE, lambda of: of.AveragePooling2D(3, strides=2, padding="same")),
    "AveragePooling2D with gaps": (PLANE, lambda of: of.AveragePooling2D(2, strides=(3, 2), padding="same")),
    "AveragePooling1D": (LINE, lambda of: of.AveragePooling1D(3)),
    "AveragePooling1D overlapping": (LINE, lambda of: of.AveragePooling1D(4, strides=2, padding="same")),
    "GlobalMaxPooling2D": (PLANE, lambda of: of.GlobalMaxPooling2D()),
    "GlobalMaxPooling2D keepdims": (PLANE, lambda of: of.GlobalMaxPooling2D(keepdims=True)),
    "GlobalMaxPooling1D": (LINE, lambda of: of.GlobalMaxPooling1D()),
    "GlobalMaxPooling1D keepdims": (LINE, lambda of: of.GlobalMaxPooling1D(keepdims=True)),
    "GlobalAveragePooling2D": (PLANE, lambda of: of.GlobalAveragePooling2D()),
    "GlobalAveragePooling2D keepdims": (PLANE, lambda of: of.GlobalAveragePooling2D(keepdims=True)),
    "GlobalAveragePooling1D": (LINE, lambda of: of.GlobalAveragePooling1D()),
    "GlobalAveragePooling1D keepdims": (LINE, lambda of: of.GlobalAveragePooling1D(keepdims=True)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_pooling(agrees: Any, name: str) -> None:
    shape, make = KINDS[name]

    def build(layers: Any) -> list[Any]:
        # Behind a ReLU, so that windows of zeros have several maxima.
        return [
            layers.Input(shape),
            layers.Dense(5, activation="relu"),
            make(layers),
            layers.Flatten(),
            layers.Dense(5),
        ]

    agrees(name, Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)
