"""Recurrent layers without their loop: refusals by name, the same bytes, what the graph holds."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pollen
from pollen.errors import CompileError

REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "stateful": (lambda layers: layers.GRU(3, stateful=True, name="r"), "'r' .GRU.*stateful=True.*stateful=False"),
    "state": (lambda layers: layers.LSTM(3, return_state=True, name="r"), "'r' .LSTM.*return_state=True.*sequences"),
    "dropout": (lambda layers: layers.GRU(3, dropout=0.1, name="r"), "'r'.*dropout inside a cell.*Dropout layer"),
    "recurrent-dropout": (lambda layers: layers.LSTM(3, recurrent_dropout=0.1, name="r"), "'r'.*dropout inside"),
    "wrapped-dropout": (
        lambda layers: layers.Bidirectional(layers.GRU(3, dropout=0.1), name="r"),
        "'r' .Bidirectional.*forward_gru.*dropout inside",
    ),
    "two-outputs": (lambda layers: layers.Bidirectional(layers.GRU(3), merge_mode=None, name="r"), "'r'.*merge_mode"),
    "two-sizes": (
        lambda layers: layers.Bidirectional(
            layers.GRU(3), backward_layer=layers.GRU(4, go_backwards=True), merge_mode="concat", name="r"
        ),
        "'r' .Bidirectional.*different units.*use the same",
    ),
    "activation": (
        lambda layers: layers.GRU(3, recurrent_activation="softmax", name="r"),
        "'r'.*recurrent_activation mixes units.*use sigmoid",
    ),
    "own-activation": (lambda layers: layers.GRU(3, activation=lambda x: x, name="r"), "'r'.*activation <lambda>"),
    "own-cell": (lambda layers: layers.RNN(layers.GRUCell(3), name="r"), "'r' .RNN.*nearest that can: GRU"),
    "masking": (lambda layers: layers.Masking(name="r"), "'r' .Masking. can't be compiled"),
    "repeated-dropout": (
        lambda layers: layers.TimeDistributed(layers.Dropout(0.1), name="r"),
        "'r' .TimeDistributed.*holds a Dropout; use it on Dense",
    ),
    "repeated-recurrent": (
        lambda layers: layers.TimeDistributed(layers.Bidirectional(layers.GRU(3)), name="r"),
        "'r'.*holds a Bidirectional",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_can_not_be_unrolled_is_refused_by_name(case: str) -> None:
    import keras

    from pollen.compiler import layers

    make, message = REFUSED[case]
    shape = (4, 6, 3) if case == "repeated-recurrent" else (6, 3)
    reading = keras.Input(shape, batch_size=4)
    made = make(keras.layers)(reading)
    output = made[0] if isinstance(made, list | tuple) else made
    model = keras.Model(reading, keras.layers.Dense(2)(keras.layers.Flatten()(output)))
    with pytest.raises(CompileError, match=message):
        layers.check(model)


def test_dropout_in_attention_and_its_scores_are_refused_by_name() -> None:
    import keras

    from pollen.compiler import layers

    x = keras.Input((6, 4))
    dropping = keras.layers.MultiHeadAttention(2, 3, dropout=0.1, name="a")(x, x)
    scores = keras.layers.MultiHeadAttention(2, 3, name="a")(x, x, return_attention_scores=True)[0]
    image = keras.Input((6, 4, 2))
    spread = keras.layers.MultiHeadAttention(2, 3, name="a")(image, image)
    for inputs, output, message in (
        (x, dropping, "dropout on attention scores"),
        (x, scores, "return_attention_scores=True"),
        (image, spread, r"must be \[length, features\]"),
    ):
        with pytest.raises(CompileError, match=f"'a' .MultiHeadAttention. can't be compiled: .*{message}"):
            layers.check(keras.Model(inputs, output))


def test_a_long_sequence_is_warned_of_and_a_longer_one_refused(caplog: pytest.LogCaptureFixture) -> None:
    import keras

    from pollen.compiler import layers

    def model(length: int | None) -> Any:
        inputs = keras.Input((length, 2))
        return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GRU(3, name="r")(inputs)))

    with caplog.at_level(logging.WARNING):
        layers.check(model(100))
        assert not caplog.records
        layers.check(model(101))
    assert "layer 'r' goes through 101 steps" in caplog.text
    with pytest.raises(CompileError, match=r"'r'.*501 steps are more than 500"):
        layers.check(model(501))
    with pytest.raises(CompileError, match=r"'r'.*length isn't fixed; give it in keras\.Input"):
        layers.check(model(None))


PROGRAM = """
import sys, keras, pollen.compiler
from pollen.compiler import models
layers = keras.layers
for _ in range(int(sys.argv[3])):
    x = keras.Input((5, 4, 3))
    y = layers.BatchNormalization()(layers.SeparableConv2D(2, 2)(layers.Conv2D(4, 3, padding="same")(x)))
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(layers.Reshape((4, 6))(layers.Dropout(0.1)(y)))
    keras.Model(x, layers.LSTM(2)(layers.MultiHeadAttention(1, 2)(y, y)))
model = models.load(sys.argv[1])
pollen.compiler.compile(model, loss="mse", batch=4, name="model").write(sys.argv[2])
"""


def test_the_bytes_do_not_depend_on_the_models_made_before(tmp_path: Path) -> None:
    import keras

    layers = keras.layers
    reading = keras.Input((5, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", groups=2)(reading)
    x = layers.Dropout(0.3)(layers.BatchNormalization()(layers.SeparableConv2D(3, 2, padding="same")(x)))
    x = layers.TimeDistributed(layers.Dense(4))(layers.Reshape((5, 18))(x))
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Model(reading, layers.Dense(2)(layers.LSTM(4)(x)))
    model.save(tmp_path / "model.keras")
    outputs = []
    for made_before in (0, 3):
        outputs.append(tmp_path / f"{made_before}.bundle")
        arguments = [str(tmp_path / "model.keras"), str(outputs[-1]), str(made_before)]
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=os.environ | {"PYTHONPATH": str(Path(pollen.__file__).parents[1]), "PYTHONHASHSEED": f"{made_before}"},
            check=True,
            timeout=300,
        )
    first, second = (output.read_bytes() for output in outputs)
    assert first == second
