"""Models compiled once for all tests of the compiler."""

from typing import Any

import pytest

from pollen.bundle import Bundle


@pytest.fixture(scope="session")
def dropout_model() -> Any:
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,), name="reading"),
            layers.Dense(12, activation="relu", name="hidden"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(3, name="classes"),
        ],
        name="Gestures 1",
    )


@pytest.fixture(scope="session")
def dropout_bundle(dropout_model: Any) -> Bundle:
    from pollen.compiler import compile  # noqa: A004

    return compile(dropout_model, loss="sparse_categorical_crossentropy", batch=8)


@pytest.fixture(scope="session")
def every_activation_model() -> Any:
    """One model with every activation that can be compiled, between layers of many kinds."""
    import keras

    from pollen.compiler.layers import ACTIVATIONS

    layers = keras.layers
    keras.utils.set_random_seed(5)
    reading = keras.Input((20, 4))
    x = layers.Conv1D(6, 3, padding="same", name="first")(reading)
    x = layers.Add()([x, layers.ReLU(max_value=6)(x)])
    x = layers.Conv1D(6, 3, dilation_rate=2, padding="causal", use_bias=False)(x)
    x = layers.Add()([layers.Activation(name)(x) for name in ACTIVATIONS])
    x = layers.AveragePooling1D(3, strides=2, padding="same")(layers.MaxPooling1D(2)(x))
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.Concatenate()(
        [
            layers.GlobalAveragePooling1D()(layers.LeakyReLU(0.1)(x)),
            layers.GlobalMaxPooling1D()(layers.ELU(0.5)(x)),
            layers.Flatten()(layers.ReLU(negative_slope=0.3)(x)),
        ]
    )
    x = layers.Dropout(0.2)(layers.Softmax()(x))
    x = layers.Reshape((2, 6))(layers.Dense(12)(x))
    return keras.Model(reading, layers.Dense(2)(x), name="everything")
