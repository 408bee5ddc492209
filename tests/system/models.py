"""Saves the Keras model of the system tests: `python tests/system/models.py FILE` (needs TensorFlow)."""

import sys

import keras
from keras import layers

if __name__ == "__main__":
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [layers.Input((4, 2)), layers.Flatten(), layers.Dense(16, activation="tanh"), layers.Dense(2)]
    )
    model.save(sys.argv[1])
