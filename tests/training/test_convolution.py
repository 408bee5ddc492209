"""Convolutions train on the device as in Keras: every kind, padding, stride and dilation."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.training.case import Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.05, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
PLANE, LINE = (11, 9, 3), (20, 4)
# The layer under test stands between two Dense ones, so that both of its gradients count.
Make = Callable[[Any], Any]
KINDS: dict[str, tuple[tuple[int, ...], Make]] = {
    "Conv2D": (PLANE, lambda of: of.Conv2D(6, 3, activation="relu")),
    "Conv2D 1x1 same, no bias": (PLANE, lambda of: of.Conv2D(6, 1, padding="same", use_bias=False)),
    "Conv2D 2x5 same, strides": (PLANE, lambda of: of.Conv2D(6, (2, 5), strides=(3, 2), padding="same")),
    "Conv2D 3x2 valid, strides": (PLANE, lambda of: of.Conv2D(6, (3, 2), strides=2, activation="tanh")),
    "Conv2D dilated, valid": (PLANE, lambda of: of.Conv2D(6, 3, dilation_rate=(2, 3))),
    "Conv2D dilated, same": (PLANE, lambda of: of.Conv2D(6, 3, dilation_rate=2, padding="same", activation="elu")),
    "Conv2D in TimeDistributed": (
        (4, 6, 5, 3),
        lambda of: of.TimeDistributed(of.Conv2D(4, 3, groups=2, padding="same", activation="relu")),
    ),
    "Conv1D": (LINE, lambda of: of.Conv1D(6, 5, activation="relu")),
    "Conv1D same, strides": (LINE, lambda of: of.Conv1D(6, 3, strides=2, padding="same")),
    "Conv1D causal, strides": (LINE, lambda of: of.Conv1D(6, 4, strides=3, padding="causal")),
    "Conv1D causal, dilated": (LINE, lambda of: of.Conv1D(6, 3, dilation_rate=3, padding="causal", use_bias=False)),
    "Conv2D in groups": (PLANE, lambda of: of.Conv2D(6, 3, groups=2, strides=2, padding="same", activation="relu")),
    "Conv1D in groups": (LINE, lambda of: of.Conv1D(8, 3, groups=4, dilation_rate=2, padding="causal")),
    "DepthwiseConv2D": (PLANE, lambda of: of.DepthwiseConv2D(3, activation="relu")),
    "DepthwiseConv2D x2 same": (PLANE, lambda of: of.DepthwiseConv2D((2, 3), depth_multiplier=2, padding="same")),
    "DepthwiseConv2D strides": (PLANE, lambda of: of.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)),
    "DepthwiseConv2D x3 strides": (PLANE, lambda of: of.DepthwiseConv2D(2, strides=3, depth_multiplier=3)),
    "DepthwiseConv2D dilated": (PLANE, lambda of: of.DepthwiseConv2D(3, dilation_rate=(2, 3))),
    "DepthwiseConv2D dilated, same": (
        PLANE,
        lambda of: of.DepthwiseConv2D(3, dilation_rate=2, depth_multiplier=2, padding="same"),
    ),
    "DepthwiseConv2D dilated, strides": (
        PLANE,
        lambda of: of.DepthwiseConv2D(3, dilation_rate=2, strides=2, padding="same"),
    ),
    "DepthwiseConv1D": (LINE, lambda of: of.DepthwiseConv1D(3, strides=2, depth_multiplier=2, activation="silu")),
    "DepthwiseConv1D dilated": (LINE, lambda of: of.DepthwiseConv1D(3, dilation_rate=2, padding="same")),
    "SeparableConv2D": (PLANE, lambda of: of.SeparableConv2D(6, 3, activation="relu")),
    "SeparableConv2D strides": (PLANE, lambda of: of.SeparableConv2D(6, 3, strides=2, padding="same")),
    "SeparableConv2D dilated": (PLANE, lambda of: of.SeparableConv2D(6, 3, dilation_rate=2, depth_multiplier=2)),
    "SeparableConv1D": (LINE, lambda of: of.SeparableConv1D(6, 4, padding="same", use_bias=False)),
    "SeparableConv1D dilated": (LINE, lambda of: of.SeparableConv1D(6, 3, dilation_rate=3)),
    "Conv2DTranspose": (PLANE, lambda of: of.Conv2DTranspose(6, 3, strides=2, activation="relu")),
    "Conv2DTranspose same": (PLANE, lambda of: of.Conv2DTranspose(6, (3, 2), strides=(2, 1), padding="same")),
    "Conv2DTranspose output_padding": (PLANE, lambda of: of.Conv2DTranspose(6, 3, strides=2, output_padding=1)),
    "Conv1DTranspose": (LINE, lambda of: of.Conv1DTranspose(6, 3, strides=3, use_bias=False)),
    "Conv1DTranspose same": (LINE, lambda of: of.Conv1DTranspose(6, 4, strides=2, padding="same")),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_convolution(agrees: Any, name: str) -> None:
    shape, make = KINDS[name]

    def build(layers: Any) -> list[Any]:
        return [
            layers.Input(shape),
            layers.Dense(4, activation="tanh"),
            make(layers),
            layers.Flatten(),
            layers.Dense(5),
        ]

    agrees(name, Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_more_channels_than_the_devices_kernel_has_room_for_at_once(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((5, 4, 8)),
            layers.Dense(150, activation="tanh"),
            layers.DepthwiseConv2D(2, depth_multiplier=4),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]

    agrees("DepthwiseConv2D of 600 channels", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_an_image_classifier(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((16, 16, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(20, activation="relu"),
            layers.Dense(10),
        ]

    agrees("CNN", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_a_mobile_image_classifier(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu6"),
            layers.Conv2D(12, 1, activation="relu6"),
            layers.SeparableConv2D(16, 3, strides=2, padding="same", activation="relu6"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]

    agrees("MobileNet-like", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_a_sequence_classifier(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((64, 3)),
            layers.Conv1D(16, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(16, 3, padding="causal", dilation_rate=2, activation="relu"),
            layers.SeparableConv1D(16, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(10),
        ]

    agrees("Conv1D net", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_an_autoencoder_of_images(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((8, 8, 1)),
            layers.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same"),
        ]

    agrees("convolutional autoencoder", Case(build, "mse"), OPTIMIZERS)
