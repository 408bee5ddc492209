"""Attention trains on the device as in Keras."""

from typing import Any

import pytest

from tests.training.case import Case

OPTIMIZERS = (
    lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)
# Each takes `layers` and the tensor [B, 6, 8].
SELF = {
    "self": lambda layers, x: layers.MultiHeadAttention(2, 4)(x, x),
    "causal": lambda layers, x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
    "value_dim": lambda layers, x: layers.MultiHeadAttention(2, 4, value_dim=3)(x, x),
    "no bias": lambda layers, x: layers.MultiHeadAttention(2, 4, use_bias=False)(x, x),
    "output_shape": lambda layers, x: layers.MultiHeadAttention(3, 2, output_shape=5)(x, x),
    "one head": lambda layers, x: layers.MultiHeadAttention(1, 4)(x, x),
    "gated": lambda layers, x: layers.MultiHeadAttention(2, 4, use_gate=True)(x, x),
    "grouped queries": lambda layers, x: layers.GroupQueryAttention(3, 4, 2)(x, x),
    "dot": lambda layers, x: layers.Attention()([x, x]),
    "dot, causal": lambda layers, x: layers.Attention(use_scale=True)([x, x], use_causal_mask=True),
    "additive": lambda layers, x: layers.AdditiveAttention()([x, x]),
}


def _model(attend: Any) -> Any:
    def build(layers: Any) -> Any:
        import keras

        reading = keras.Input((6, 8))
        x = layers.Dense(8)(reading)
        return keras.Model(reading, layers.Dense(4)(layers.Flatten()(attend(layers, x))))

    return build


@pytest.mark.parametrize("name", SELF)
def test_self_attention(agrees: Any, name: str) -> None:
    agrees(f"attention: {name}", Case(_model(SELF[name]), "sparse_categorical_crossentropy"), OPTIMIZERS)


@pytest.mark.parametrize("with_key", [False, True], ids=["value", "value-and-key"])
def test_cross_attention(agrees: Any, with_key: bool) -> None:
    def attend(layers: Any, x: Any) -> Any:
        other = layers.Conv1D(5, 3, strides=2)(x)
        key = layers.Dense(7, activation="tanh")(other) if with_key else None
        return layers.MultiHeadAttention(2, 4)(x, other, key=key)

    agrees("cross attention" + with_key * " with key", Case(_model(attend), "mse"), OPTIMIZERS)


def test_a_transformer_block(agrees: Any) -> None:
    def attend(layers: Any, x: Any) -> Any:
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)]))
        inner = layers.Dropout(0.1)(layers.Dense(16, activation="relu")(x))
        return layers.LayerNormalization()(layers.Add()([x, layers.Dense(8)(inner)]))

    agrees("transformer block", Case(_model(attend), "sparse_categorical_crossentropy"), OPTIMIZERS)
