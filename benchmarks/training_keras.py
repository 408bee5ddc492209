"""The models in Keras on TensorFlow, their `train_on_batch`, and their bundles.

python -m benchmarks.training_keras FOLDER MODEL… SIZE… writes the bundles of these models for these batch sizes.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from benchmarks.training_models import CLASSES, CNN, GRU, MLP, RATE, SHAPES, batch_of

LOSS = "sparse_categorical_crossentropy"


def build(model: str) -> Any:
    """The Keras model, which ends in logits."""
    if model == "mlp":
        hidden = [layers.Dense(units, "relu") for units in MLP[1:]]
    elif model == "cnn":
        first, second = (layers.Conv2D(filters, 3, padding="same", activation="relu") for filters in CNN[:2])
        pooled = [first, layers.MaxPooling2D(), second, layers.MaxPooling2D(), layers.Flatten()]
        hidden = [*pooled, layers.Dense(CNN[2], "relu")]
    else:
        hidden = [layers.GRU(GRU)]
    return keras.Sequential([layers.Input(SHAPES[model]), *hidden, layers.Dense(CLASSES)])


def stepper(model: str, size: int, _bundles: Path) -> Callable[[], object]:
    """One step: `train_on_batch`, on one thread."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    network, batch = build(model), batch_of(model, size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(RATE), loss)
    return lambda: network.train_on_batch(batch.x, batch.y)


def main(folder: Path, models: list[str], sizes: list[int]) -> None:
    """Compile each model for each batch size."""
    compiler = importlib.import_module("pollen.compiler")  # only here, so that the contender imports Keras alone
    keras.utils.set_random_seed(1)
    for model in models:
        network = build(model)
        for size in sizes:
            bundle = compiler.compile(network, loss=LOSS, optimizer=keras.optimizers.SGD(RATE), batch=size, name=model)
            bundle.write(folder / f"{model}-{size}.bundle")


if __name__ == "__main__":
    given = sys.argv[2:]
    main(Path(sys.argv[1]), [word for word in given if word in SHAPES], [int(word) for word in given if word.isdigit()])
