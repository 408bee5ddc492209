"""Recurrent layers, unrolled on the device, train as in Keras."""

from typing import Any

import pytest

from tests.training.case import Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
# What each builds after an input of 7 steps of 5 features.
LAYERS = {
    "SimpleRNN": lambda layers: [layers.SimpleRNN(6)],
    "SimpleRNN relu": lambda layers: [layers.SimpleRNN(6, activation="relu", use_bias=False)],
    "LSTM": lambda layers: [layers.LSTM(6)],
    "LSTM without bias": lambda layers: [layers.LSTM(6, use_bias=False, unit_forget_bias=False)],
    "LSTM with other activations": lambda layers: [
        layers.LSTM(6, activation="softsign", recurrent_activation="hard_sigmoid")
    ],
    "GRU": lambda layers: [layers.GRU(6)],
    "GRU without bias": lambda layers: [layers.GRU(6, use_bias=False)],
    "GRU with other activations": lambda layers: [layers.GRU(6, activation="elu", recurrent_activation="softsign")],
    "GRU reset before": lambda layers: [layers.GRU(6, reset_after=False)],
    "GRU reset before, without bias": lambda layers: [layers.GRU(6, reset_after=False, use_bias=False)],
    "backwards": lambda layers: [layers.GRU(6, go_backwards=True)],
    "LSTM backwards, sequence": lambda layers: [
        layers.LSTM(6, go_backwards=True, return_sequences=True),
        layers.Flatten(),
    ],
    "SimpleRNN sequence": lambda layers: [layers.SimpleRNN(6, return_sequences=True), layers.Flatten()],
    "stacked": lambda layers: [
        layers.GRU(6, return_sequences=True),
        layers.LSTM(5, return_sequences=True),
        layers.SimpleRNN(4),
    ],
    "TimeDistributed Dense": lambda layers: [
        layers.TimeDistributed(layers.Dense(6, activation="relu")),
        layers.GRU(5, return_sequences=True),
        layers.TimeDistributed(layers.Dense(3, activation="tanh")),
        layers.Flatten(),
    ],
    "one step": lambda layers: [layers.Reshape((1, 35)), layers.GRU(4)],
}


def _model(make: Any) -> Any:
    return lambda layers: [layers.Input((7, 5)), *make(layers), layers.Dense(4)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer(agrees: Any, name: str) -> None:
    agrees(name, Case(_model(LAYERS[name]), "sparse_categorical_crossentropy"), OPTIMIZERS)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave"])
def test_bidirectional(agrees: Any, mode: str) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode=mode),
            layers.Bidirectional(layers.LSTM(3), merge_mode=mode),
        ]

    agrees(f"Bidirectional {mode}", Case(_model(build), "sparse_categorical_crossentropy"), OPTIMIZERS)


def test_bidirectional_with_two_different_layers(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        backward = layers.GRU(4, go_backwards=True, activation="softsign")
        return [layers.Bidirectional(layers.SimpleRNN(4), backward_layer=backward)]

    agrees("Bidirectional of two kinds", Case(_model(build), "mse"), OPTIMIZERS)


def test_a_first_state_computed_by_another_layer(agrees: Any) -> None:
    def build(layers: Any) -> Any:
        import keras

        reading = keras.Input((7, 5))
        first = layers.Dense(6, activation="tanh")(layers.Flatten()(reading))
        whole = layers.LSTM(6, return_sequences=True)(reading, initial_state=[first, first])
        last = layers.GRU(6)(whole, initial_state=first)
        return keras.Model(reading, layers.Dense(4)(last))

    agrees("first state", Case(build, "mse"), OPTIMIZERS)


def test_a_layer_used_twice(agrees: Any) -> None:
    def build(layers: Any) -> Any:
        import keras

        reading = keras.Input((7, 5))
        shared = layers.GRU(5, return_sequences=True)
        return keras.Model(reading, layers.Dense(4)(layers.Flatten()(shared(shared(reading)))))

    agrees("GRU used twice", Case(build, "mse"), OPTIMIZERS)


def test_a_convolution_at_each_step(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [
            layers.Input((4, 10, 2)),
            layers.TimeDistributed(layers.Conv1D(3, 3, activation="relu")),
            layers.TimeDistributed(layers.GlobalAveragePooling1D()),
            layers.LSTM(4),
            layers.Dense(2),
        ]

    agrees("TimeDistributed Conv1D", Case(build, "mse"), OPTIMIZERS)


def test_dropout_around_a_recurrent_layer(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [layers.Dropout(0.2), layers.GRU(8), layers.Dropout(0.4)]

    agrees("GRU between Dropouts", Case(_model(build), "mse"), OPTIMIZERS)


def test_the_gru_of_the_benchmark(agrees: Any) -> None:
    def build(layers: Any) -> list[Any]:
        return [layers.Input((20, 8)), layers.GRU(52), layers.Dense(10)]

    agrees("GRU 10 k parameters", Case(build, "sparse_categorical_crossentropy"), OPTIMIZERS)
