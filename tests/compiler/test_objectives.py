"""Losses and optimizers: what a manifest says of Keras's, what is refused, and how `pollen compile` is told."""

from pathlib import Path
from typing import Any

import pytest

from pollen.bundle import Bundle, Loss, Optimizer
from pollen.errors import CompileError
from pollen.objective import Schedule


def _dense_model(activation: str | None = None) -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=activation, name="out")])


def _compile(model: Any, **settings: Any) -> Bundle:
    from pollen.compiler import compile  # noqa: A004

    return compile(model, **({"loss": "mse"} | settings))


def _rate() -> float:
    return 0.1


def _decaying_all_but(optimizers: Any, name: str) -> Any:
    optimizer = optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=[name])
    return optimizer


def test_probabilities_are_recognised_behind_layers_that_only_shape_them() -> None:
    import keras

    layers = keras.layers
    flatten = layers.Flatten()
    ends: list[list[Any]] = [
        [layers.TimeDistributed(layers.Dense(3, activation="softmax"))],
        [layers.Dense(3, activation="softmax"), layers.Cropping1D(1), layers.Identity()],
    ]
    for end in ends:
        model = keras.Sequential([keras.Input((5, 4)), *end])
        assert not _compile(model, loss="sparse_categorical_crossentropy", batch=2).manifest.loss.from_logits
    start = keras.Input((2, 3))
    output = flatten(layers.Dense(3, activation="sigmoid")(layers.Reshape((6,))(flatten(start))))
    assert not _compile(keras.Model(start, output), loss="binary_crossentropy", batch=2).manifest.loss.from_logits


def test_a_layers_name_does_not_pass_for_its_activation() -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.ReLU(name="softmax")])
    with pytest.raises(CompileError, match="this one ends with ReLU"):
        _compile(model, loss="categorical_crossentropy")


@pytest.mark.parametrize(
    ("loss", "activation", "message"),
    [
        (lambda _: "hinge", None, "loss 'hinge' can't be compiled; use one of sparse_categorical"),
        (lambda losses: losses.LogCosh(), None, "loss LogCosh can't be compiled"),
        (lambda losses: losses.Huber(delta=-1.0), None, "huber: delta must be above 0"),
        (
            lambda losses: losses.CategoricalCrossentropy(from_logits=True, label_smoothing=2.0),
            None,
            "label_smoothing 2.0 is out of range",
        ),
        (lambda losses: losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), None, "ignore_class=0"),
        (lambda losses: losses.MeanSquaredError(reduction="sum"), None, "mse: reduction=sum"),
        (
            lambda losses: losses.SparseCategoricalCrossentropy(),
            None,
            "from_logits=False doesn't fit .* ends with linear",
        ),
        (lambda losses: losses.BinaryCrossentropy(from_logits=True), "sigmoid", "from_logits=True doesn't fit"),
        (lambda _: "categorical_crossentropy", "relu", "ends with relu"),
        (lambda _: "binary_crossentropy", "softmax", "linear or sigmoid, this one ends with softmax"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(loss: Any, activation: str | None, message: str) -> None:
    import keras

    with pytest.raises(CompileError, match=message):
        _compile(_dense_model(activation), loss=loss(keras.losses))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: "nadam", "optimizer 'nadam' can't run on a device; use one of sgd, momentum"),
        (lambda optimizers: optimizers.Nadam(), "optimizer Nadam can't run on a device; use one of SGD, Adam"),
        (lambda optimizers: optimizers.Adam(amsgrad=True), "amsgrad isn't supported"),
        (lambda optimizers: _decaying_all_but(optimizers, "bias"), "a device decays all weights; use l2 regularisers"),
        (lambda optimizers: optimizers.SGD(0.1, momentum=0.5, clipvalue=-1.0), "clipvalue = -1.0 is out of range"),
        (lambda optimizers: optimizers.SGD(use_ema=True), "use_ema isn't supported"),
        (lambda optimizers: optimizers.SGD(gradient_accumulation_steps=2), "gradient_accumulation_steps"),
        (lambda optimizers: optimizers.SGD(_rate), "learning rate can't be computed on a device; give a number"),
        (
            lambda optimizers: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 10, -1.0)),
            "schedule exponential_decay: decay_rate = -1.0 is out of range",
        ),
    ],
)
def test_an_optimizer_a_device_can_not_run_is_refused_by_name(make: Any, message: str) -> None:
    import keras

    with pytest.raises(CompileError, match=message):
        _compile(_dense_model(), optimizer=make(keras.optimizers))


def test_keras_optimizers_keep_their_constants() -> None:
    import keras

    from pollen.compiler import optimizers

    adam = optimizers.parse(keras.optimizers.Adam(0.5, beta_1=0.8, beta_2=0.99, epsilon=1e-3), 0.25)
    assert adam == Optimizer("adam", 0.25, {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3})
    momentum = optimizers.parse(keras.optimizers.SGD(0.5, momentum=0.7, nesterov=True), None)
    assert momentum == Optimizer("momentum", 0.5, {"momentum": 0.7, "nesterov": 1.0})
    assert optimizers.parse(keras.optimizers.SGD(0.5), None) == Optimizer("sgd", 0.5, {})
    clipped = optimizers.parse(keras.optimizers.AdamW(0.5, clipvalue=2.0), None)
    assert (clipped.settings["weight_decay"], clipped.settings["clipvalue"]) == (0.004, 2.0)
    warm = keras.optimizers.schedules.CosineDecay(0.0, 8, warmup_target=0.5, warmup_steps=2)
    described = Schedule(
        "cosine_decay",
        {
            "initial_learning_rate": 0.0,
            "decay_steps": 8.0,
            "alpha": 0.0,
            "warmup_target": 0.5,
            "warmup_steps": 2.0,
        },
    )
    assert optimizers.parse(keras.optimizers.RMSprop(warm), None).learning_rate == described
    assert optimizers.parse(keras.optimizers.RMSprop(warm), 0.25).learning_rate == 0.25


def test_the_command_takes_clipping_and_frozen_and_personal_layers(dropout_model: Any, tmp_path: Path) -> None:
    from pollen.compiler import command

    dropout_model.save(tmp_path / "model.keras")
    settings = ["--loss", "huber", "--huber-delta", "0.5", "--optimizer", "rmsprop", "--global-clipnorm", "2"]
    output = tmp_path / "m.bundle"
    source = str(tmp_path / "model.keras")
    assert command.main([source, *settings, "--personal", "classes", "--batch", "4", "-o", str(output)]) == 0
    manifest = Bundle.read(output).manifest
    assert manifest.loss == Loss("huber", from_logits=False, delta=0.5)
    assert manifest.optimizer.settings["global_clipnorm"] == 2.0
    assert manifest.personal == ("classes",)
    assert command.main([source, "--loss", "mse", "--last-layer-only", "--batch", "4", "-o", str(output)]) == 0
    assert {tensor.layer for tensor in Bundle.read(output).manifest.weights} == {"classes"}
    assert command.main([source, "--loss", "mse", "--freeze", "classes", "--batch", "4", "-o", str(output)]) == 0
    assert {tensor.layer for tensor in Bundle.read(output).manifest.weights} == {"hidden"}


def test_the_command_refuses_a_delta_of_another_loss(
    dropout_model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pollen.compiler import command

    dropout_model.save(tmp_path / "model.keras")
    arguments = [str(tmp_path / "model.keras"), "--loss", "mse", "--huber-delta", "1", "-o", str(tmp_path / "m.bundle")]
    assert command.main(arguments) == 1
    assert capfd.readouterr().err == "error: --huber-delta is of the huber loss, not of mse; leave it out\n"
