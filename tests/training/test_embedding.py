"""Models of integers, with an Embedding, train on the device as in Keras."""

from typing import Any

import numpy as np
import pytest

from tests.training.case import BATCH, STEPS, Case

LENGTH = 12
PLACES = BATCH * LENGTH
SGD = (
    lambda optimizers: optimizers.SGD(0.5),
    lambda optimizers: optimizers.SGD(0.1, momentum=0.9),
    lambda optimizers: optimizers.SGD(0.1, momentum=0.8, nesterov=True),
)
ADAPTIVE = (
    lambda optimizers: optimizers.Adam(0.001),
    lambda optimizers: optimizers.RMSprop(0.001),
    lambda optimizers: optimizers.Adagrad(0.01),
)


def _bag_of_words(words: int) -> Any:
    return lambda layers: [
        layers.Input((LENGTH,), dtype="int32"),
        layers.Embedding(words, 8),
        layers.GlobalAveragePooling1D(),
        layers.Dense(16, "tanh"),
        layers.Dense(4),
    ]


def _each_once(rng: np.random.Generator) -> Any:
    """Each of the words once in each batch."""
    return np.stack([rng.permutation(PLACES).reshape(BATCH, LENGTH) for _ in range(STEPS)]).astype(np.int32)


def _dense(make: Any) -> Any:
    """The same optimizer, given an Embedding's gradient as one array.

    Keras's adaptive optimizers square the slices of a sparse gradient one by one where a word occurs twice in a batch
    (see the test below); the device, like every dense gradient, squares their sum.
    """

    def build(optimizers: Any) -> Any:
        import tensorflow as tf

        optimizer = make(optimizers)
        apply = optimizer.apply

        def apply_dense(gradients: Any, variables: Any = None) -> None:
            apply([tf.convert_to_tensor(gradient) for gradient in gradients], variables)

        optimizer.apply = apply_dense
        return optimizer

    return build


def test_words_that_repeat(agrees: Any) -> None:
    agrees("Embedding, 20 words", Case(_bag_of_words(20), "sparse_categorical_crossentropy"), SGD)
    agrees("Embedding, 1000 words", Case(_bag_of_words(1000), "sparse_categorical_crossentropy"), SGD)


def test_words_that_repeat_with_adaptive_optimizers(agrees: Any) -> None:
    case = Case(_bag_of_words(20), "sparse_categorical_crossentropy")
    agrees("Embedding, Keras's gradient as one array", case, [_dense(make) for make in ADAPTIVE])


def test_words_once_a_batch_with_adaptive_optimizers(agrees: Any) -> None:
    case = Case(_bag_of_words(PLACES), "sparse_categorical_crossentropy", x=_each_once)
    agrees("Embedding, each word once a batch", case, ADAPTIVE)


@pytest.mark.parametrize("make", ADAPTIVE)
def test_keras_squares_the_slices_of_a_repeated_word_one_by_one(make: Any) -> None:
    import keras
    import tensorflow as tf

    def moments(gradient: Any) -> Any:
        """The optimizer's mean of squares, which starts equal everywhere, for words 1 (twice in the batch) and 2."""
        optimizer = make(keras.optimizers)
        optimizer.apply([gradient], [keras.Variable(np.zeros((3, 1), np.float32))])
        (square,) = [np.asarray(v) for v in optimizer.variables if "veloc" in v.path or "accumul" in v.path]
        return square[1:] - square[0]  # word 0 isn't in the batch

    slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([1, 1, 2]), tf.constant([3, 1]))
    by_slice, together = moments(slices), moments(tf.convert_to_tensor(slices))
    assert by_slice[0] / together[0] == pytest.approx((1.0**2 + 2.0**2) / (1.0 + 2.0) ** 2, rel=1e-4)
    assert by_slice[1] == together[1]


def test_several_tables_of_one_input(agrees: Any) -> None:
    def build(layers: Any) -> Any:
        import keras

        words = layers.Input((3, 4), dtype="int32")
        row = layers.Reshape((12,))(words)
        x = layers.Concatenate()([layers.Embedding(30, 4)(row), layers.Embedding(20, 3)(row)])
        x = layers.Conv1D(6, 3, activation="relu")(x)
        return keras.Model(words, layers.Dense(2)(layers.Flatten()(x)))

    agrees("Embedding, two tables", Case(build), SGD[:1])


def test_one_table_used_twice(agrees: Any) -> None:
    def build(layers: Any) -> Any:
        import keras

        words = layers.Input((2, 3), dtype="int32")
        table = layers.Embedding(30, 4)
        once = layers.GlobalAveragePooling1D()(table(layers.Reshape((6,))(words)))
        again = layers.Flatten()(table(words))
        return keras.Model(words, layers.Dense(2)(layers.Concatenate()([once, again])))

    agrees("Embedding, used twice", Case(build), SGD[:2])


def test_a_frozen_table(agrees: Any) -> None:
    def freeze(model: Any) -> None:
        model.layers[0].trainable = False

    agrees(
        "Embedding, frozen",
        Case(
            lambda layers: [layers.Input((6,), dtype="int32"), layers.Embedding(30, 4, name="table"), layers.Flatten(),
                            layers.Dense(3)],
            options={"frozen": ["table"]},
            prepare=freeze,
        ),
        SGD[:1],
    )  # fmt: skip
