"""The models a demo trains when none is given: small, and built by a process of its own.

Keras takes seconds and half a gigabyte to import, so nothing here imports it until `main` runs, in a
process started for that purpose.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pollen.demo.recording import Recording, Task

Kind = Literal["forecast", "windows", "rows"]
FORECAST_WINDOW = 16  # readings; at 5 a second the last 3.2 s


@dataclass(frozen=True, slots=True)
class Design:
    """What a default model must fit: `shape` of one input, `outputs`, and how it is trained."""

    kind: Kind
    shape: tuple[int, ...]
    outputs: int
    seed: int
    loss: str
    optimizer: str
    learning_rate: float

    def arguments(self) -> list[str]:
        """The command line that makes `main` build this."""
        return [
            f"--kind={self.kind}",
            f"--shape={','.join(map(str, self.shape))}",
            f"--outputs={self.outputs}",
            f"--seed={self.seed}",
        ]


def design(recording: Recording | None, channels: int, seed: int) -> Design:
    """The default model for a recording, or (None) for live telemetry of `channels` channels."""
    if recording is None or recording.task == "forecast":
        return Design("forecast", (FORECAST_WINDOW, channels), channels, seed, "mse", "adam", 3e-4)
    task = recording.task
    outputs = len(recording.classes) if task == "classification" else 1
    kind: Kind = "windows" if recording.x.ndim == 3 else "rows"
    return Design(kind, recording.x.shape[1:], outputs, seed, loss_of(task), "adam", 2e-3)


def loss_of(task: Task) -> str:
    """The loss each task is trained with."""
    return "sparse_categorical_crossentropy" if task == "classification" else "mse"


def build(kind: Kind, shape: tuple[int, ...], outputs: int) -> Any:
    """A Keras model: a 1-D CNN for windows, an MLP for rows, for forecasts see `_forecast`."""
    import keras  # noqa: PLC0415
    from keras import layers  # noqa: PLC0415

    if kind == "forecast":
        return _forecast(shape)
    if kind == "windows":
        hidden = [layers.Conv1D(filters, 5, strides=2, padding="same", activation="relu") for filters in (16, 32, 32)]
        hidden.append(layers.GlobalAveragePooling1D())
    else:
        hidden = [layers.Dense(64, activation="relu"), layers.Dense(64, activation="relu")]
    return keras.Sequential([keras.Input(shape), *hidden, layers.Dense(outputs)])


def _forecast(shape: tuple[int, ...]) -> Any:
    """A linear forecast plus a small MLP's correction of it, float32 [T, C] to [C].

    Its first weights make it persistence, the forecast that is hardest to beat: the next reading is the last one.
    What it does better than that, it has learned.
    """
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from keras import layers  # noqa: PLC0415

    window, channels = shape
    inputs = keras.Input(shape)
    flat = layers.Flatten()(inputs)
    linear = layers.Dense(channels, name="linear")
    forecast = linear(flat)
    correction = layers.Dense(channels, kernel_initializer="zeros", name="correction")
    hidden = layers.Dense(32, activation="relu", name="hidden")(flat)
    outputs = layers.Add()([forecast, correction(hidden)])
    last_reading = np.zeros((window * channels, channels), np.float32)
    last_reading[-channels:] = np.eye(channels)
    linear.set_weights([last_reading, np.zeros(channels, np.float32)])
    return keras.Model(inputs, outputs)


def main(argv: list[str] | None = None) -> int:
    """Build one default model and save it as a .keras file."""
    parser = argparse.ArgumentParser(prog="models", description=main.__doc__)
    parser.add_argument("--kind", choices=("forecast", "windows", "rows"), required=True)
    parser.add_argument("--shape", required=True, metavar="T,C")
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras  # noqa: PLC0415

    keras.utils.set_random_seed(arguments.seed)
    shape = tuple(int(length) for length in arguments.shape.split(","))
    build(arguments.kind, shape, arguments.outputs).save(arguments.output)
    return 0
