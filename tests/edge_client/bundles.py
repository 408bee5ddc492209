"""Compiles the small models the device tests use: `python tests/edge_client/bundles.py FOLDER` (needs TensorFlow)."""

import sys
from pathlib import Path

import keras
from keras import layers

from pollen.compiler import compile as compile_model


def main(folder: Path) -> None:
    keras.utils.set_random_seed(1)
    forecast = keras.Sequential(
        [layers.Input((4, 2)), layers.Flatten(), layers.Dense(16, activation="tanh"), layers.Dense(2)]
    )
    wide = keras.Sequential(
        [layers.Input((4, 2)), layers.Flatten(), layers.Dense(24, activation="tanh"), layers.Dense(2)]
    )
    classes = keras.Sequential(
        [
            layers.Input((6, 2)),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    dropout = keras.Sequential(
        [layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dropout(0.2), layers.Dense(2)]
    )
    mlp = keras.Sequential(  # 19,650 parameters
        [
            layers.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(170, activation="relu"),
            layers.Dense(48),
            layers.Dense(8),
        ]
    )
    personal = keras.Sequential(
        [
            layers.Input((4, 2)),
            layers.Flatten(),
            layers.Dense(16, activation="tanh", name="body"),
            layers.BatchNormalization(momentum=0.9, name="norm"),
            layers.Dense(2, name="head"),
        ]
    )
    models = {
        "forecast": (forecast, "mse", "telemetry", 0.05),
        "wide": (wide, "mse", "telemetry", 0.05),
        "classes": (classes, "sparse_categorical_crossentropy", "motion", 0.1),
        "dropout": (dropout, "mse", "telemetry", 0.05),
        "mlp": (mlp, "mse", "telemetry", 0.01),
        "personal": (personal, "mse", "telemetry", 0.05),
    }
    for name, (model, loss, model_name, rate) in models.items():
        own = ("head",) if name == "personal" else ()
        bundle = compile_model(
            model, loss=loss, optimizer="sgd", learning_rate=rate, batch=8, name=model_name, personal=own
        )
        bundle.write(folder / f"{name}.bundle")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
