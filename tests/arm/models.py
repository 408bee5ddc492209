"""One model of each family of layers, trained by SGD. How near each comes to Keras is for tests/training to say."""

from typing import Any

import keras

from tests.training.case import Case

CLASSES = "sparse_categorical_crossentropy"
IMAGE = (12, 12, 3)
SERIES = (10, 6)


def _mlp(layers: Any) -> list[Any]:
    return [layers.Input((64,)), layers.Dense(64, "relu"), layers.Dense(40, "relu"), layers.Dense(10)]


def _dropout(layers: Any) -> list[Any]:
    hidden = [layers.Dense(48, "silu"), layers.Dropout(0.3), layers.Dense(24, "tanh"), layers.Dropout(0.5)]
    return [layers.Input((32,)), *hidden, layers.Dense(6, "softmax")]


def _conv1d(layers: Any) -> list[Any]:
    first = layers.Conv1D(12, 3, padding="causal", dilation_rate=2, activation="relu")
    second = layers.Conv1D(8, 3, strides=2, activation="relu")
    return [layers.Input((24, 4)), first, layers.MaxPooling1D(), second, layers.Flatten(), layers.Dense(3)]


def _conv2d(layers: Any) -> list[Any]:
    first = layers.Conv2D(8, 3, padding="same", activation="relu")
    second = layers.Conv2D(12, 3, activation="relu")
    pools = layers.MaxPooling2D(), layers.AveragePooling2D(2)
    return [layers.Input(IMAGE), first, pools[0], second, pools[1], layers.Flatten(), layers.Dense(5)]


def _separable(layers: Any) -> list[Any]:
    first = layers.DepthwiseConv2D(3, padding="same", activation="relu")
    second = layers.SeparableConv2D(8, 3, activation="relu")
    return [layers.Input(IMAGE), first, second, layers.GlobalAveragePooling2D(), layers.Dense(4)]


def _batch_normalisation(layers: Any) -> list[Any]:
    first = layers.Conv2D(8, 3, padding="same", use_bias=False)
    after = [layers.BatchNormalization(), layers.Activation("relu"), layers.GlobalMaxPooling2D()]
    return [layers.Input(IMAGE), first, *after, layers.Dense(16), layers.BatchNormalization(), layers.Dense(4)]


def _layer_normalisation(layers: Any) -> list[Any]:
    hidden = [layers.Dense(24, "relu"), layers.LayerNormalization(), layers.Dense(12), layers.LayerNormalization()]
    return [layers.Input((20,)), *hidden, layers.Dense(3)]


def _embedding(layers: Any) -> list[Any]:
    return [
        layers.Input((9,), dtype="int32"),
        layers.Embedding(40, 12),
        layers.GlobalAveragePooling1D(),
        layers.Dense(16, "relu"),
        layers.Dense(4),
    ]


def _simple_rnn(layers: Any) -> list[Any]:
    return [layers.Input(SERIES), layers.SimpleRNN(16, return_sequences=True), layers.SimpleRNN(8), layers.Dense(2)]


def _gru(layers: Any) -> list[Any]:
    return [layers.Input(SERIES), layers.GRU(20), layers.Dense(4)]


def _lstm(layers: Any) -> list[Any]:
    return [layers.Input(SERIES), layers.LSTM(16), layers.Dense(3)]


def _bidirectional(layers: Any) -> list[Any]:
    return [layers.Input(SERIES), layers.Bidirectional(layers.GRU(10)), layers.Dense(3)]


def _attention(layers: Any) -> keras.Model:
    given = layers.Input(SERIES)
    hidden = layers.Dense(16)(given)
    hidden = layers.Add()([hidden, layers.MultiHeadAttention(2, 8)(hidden, hidden)])
    hidden = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(hidden))
    return keras.Model(given, layers.Dense(4)(hidden))


def _branches(layers: Any) -> keras.Model:
    given = layers.Input((16,))
    left, right = layers.Dense(12, "relu")(given), layers.Dense(12, "tanh")(given)
    both = layers.Concatenate()([layers.Add()([left, right]), layers.Reshape((12,))(left)])
    return keras.Model(given, layers.Dense(1, "sigmoid")(both))


def _autoencoder(layers: Any) -> list[Any]:
    hidden = [layers.Dense(16, "elu"), layers.Dense(6, "relu"), layers.Dense(16, "softplus"), layers.Dense(40)]
    return [layers.Input((8, 5)), layers.Flatten(), *hidden, layers.Reshape((8, 5))]


MODELS = {
    "Dense": Case(_mlp, CLASSES),
    "Dropout": Case(_dropout, CLASSES),
    "Conv1D": Case(_conv1d, CLASSES),
    "Conv2D": Case(_conv2d, CLASSES),
    "SeparableConv2D": Case(_separable, CLASSES),
    "BatchNormalization": Case(_batch_normalisation, CLASSES),
    "LayerNormalization": Case(_layer_normalisation, CLASSES, weighted=True),
    "Embedding": Case(_embedding, CLASSES),
    "SimpleRNN": Case(_simple_rnn, "mse"),
    "GRU": Case(_gru, CLASSES),
    "LSTM": Case(_lstm, CLASSES),
    "Bidirectional": Case(_bidirectional, CLASSES),
    "MultiHeadAttention": Case(_attention, CLASSES),
    "branches": Case(_branches, "binary_crossentropy"),
    "autoencoder": Case(_autoencoder, "mse", lambda optimizers: optimizers.SGD(0.02, momentum=0.9)),
}
