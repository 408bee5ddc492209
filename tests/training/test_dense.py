"""Models of Dense layers train on the device as in Keras."""

from typing import Any

from tests.training.case import Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.05),
    lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
    lambda optimizers: optimizers.SGD(0.02, momentum=0.8, nesterov=True),
    lambda optimizers: optimizers.Adam(0.001),
)


def test_a_classifier(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((64,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(40, activation="relu"),
            layers.Dense(10),
        ]

    agrees("MLP", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_dropout_with_the_hosts_numbers(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((32,)),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(32, activation="silu"),
            layers.Dropout(0.5),
            layers.Dense(6, activation="softmax"),
        ]

    agrees("Dropout", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_a_regression(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((8, 4)),
            layers.Flatten(),
            layers.Dense(32, activation="tanh"),
            layers.Dense(24, activation="sigmoid"),
            layers.Dense(3),
        ]

    agrees("regression", Case(build, "mse"), OPTIMIZERS)
