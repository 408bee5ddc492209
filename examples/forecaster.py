"""A forecaster to copy: what the sensor's channels will read next, learned on the device from their last readings.

    python examples/forecaster.py --channels 2 forecaster.keras
    pollen compile forecaster.keras --loss mae --optimizer adam --learning-rate 1e-3 --batch 32 -o forecaster.bundle

It starts as persistence, "the next reading is the last one", which is hard to beat; what it does better, the device
has learned. `python -m benchmarks.nab` measures it.
"""

import argparse
from typing import Any, Final

import keras
import numpy as np
from keras import layers

WINDOW: Final = 12  # readings that it looks back
HIDDEN: Final = 32

LOSS: Final = "mae"  # one spike in the stream doesn't undo what was learned
OPTIMIZER: Final = "adam"
LEARNING_RATE: Final = 1e-3
BATCH: Final = 32


def forecaster(channels: int = 1, window: int = WINDOW, hidden: int = HIDDEN) -> Any:
    """A Keras model, float32 [window, channels] to [channels]: a linear forecast and a small network's correction."""
    readings = keras.Input((window, channels))
    flat = layers.Flatten()(readings)
    linear = layers.Dense(channels, name="linear")
    forecast = linear(flat)
    correction = layers.Dense(channels, kernel_initializer="zeros", name="correction")
    corrected = correction(layers.Dense(hidden, activation="relu", name="hidden")(flat))
    last_reading = np.zeros((window * channels, channels), np.float32)
    last_reading[-channels:] = np.eye(channels)
    linear.set_weights([last_reading, np.zeros(channels, np.float32)])
    return keras.Model(readings, layers.Add()([forecast, corrected]), name="forecaster")


def main() -> None:
    """Save the model for `pollen compile`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the .keras file to write")
    parser.add_argument("--channels", type=int, default=1, help="of the sensor (default 1)")
    parser.add_argument("--window", type=int, default=WINDOW, help=f"readings it looks back (default {WINDOW})")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights (default 0)")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    forecaster(arguments.channels, arguments.window).save(arguments.output)


if __name__ == "__main__":
    main()
