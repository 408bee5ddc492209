"""Layers that stay as they are, while the others train as in Keras."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen.bundle import Bundle
from pollen.errors import CompileError
from tests.training import case as cases
from tests.training.case import Case

OPTIMIZERS: tuple[Callable[[Any], Any], ...] = (
    lambda optimizers: optimizers.SGD(0.05),
    lambda optimizers: optimizers.SGD(0.02, momentum=0.9),
    lambda optimizers: optimizers.Adam(0.001),
)


def _stack(layers: Any) -> list[Any]:
    return [
        layers.Input((10, 4)),
        layers.Conv1D(6, 3, name="convolution"),
        layers.BatchNormalization(name="batch"),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dense(12, name="hidden"),
        layers.BatchNormalization(name="plain", scale=False, center=False),
        layers.LayerNormalization(name="layer"),
        layers.Dense(3, name="last"),
    ]


def _freeze(*names: str) -> Any:
    def prepare(model: Any) -> None:
        for name in names:
            model.get_layer(name).trainable = False

    return prepare


def _names(tensors: Any) -> set[str]:
    return {tensor.layer for tensor in tensors}


ALL = ("convolution", "batch", "hidden", "plain", "layer", "last")


@pytest.fixture(scope="module")
def model() -> Any:
    """The stack with moving averages that aren't those of a new model."""
    import keras

    keras.utils.set_random_seed(0)
    built = keras.Sequential(_stack(keras.layers))
    rng = np.random.default_rng(0)
    for name in ("batch", "plain"):
        layer = built.get_layer(name)
        layer.moving_mean.assign(rng.standard_normal(layer.moving_mean.shape))
        layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    return built


@pytest.mark.parametrize("name", ["convolution", "hidden", "layer", "last"])
def test_the_others_train_as_in_keras(agrees: Any, name: str) -> None:
    agrees(f"frozen {name}", Case(_stack, options={"frozen": [name]}, prepare=_freeze(name)), OPTIMIZERS[:1])


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"frozen": ["batch", "plain"]}, ("batch", "plain")),
        ({"last_layer_only": True}, ALL[:-1]),
        ({"last_layer_only": True, "frozen": ["last"]}, (*ALL[:-2], "last")),
    ],
    ids=["normalisation", "last-layer-only", "last-but-one-only"],
)
def test_a_frozen_batch_normalisation_uses_its_moving_averages(
    model: Any, devices: Any, tmp_path: Path, options: dict[str, Any], frozen: tuple[str, ...]
) -> None:
    import keras

    case = Case(lambda _: keras.models.clone_model(model), options=options, prepare=_freeze(*frozen))
    bundle = _compile(model, **options)
    assert _names(bundle.manifest.frozen) == set(frozen)
    assert _names(bundle.manifest.weights) == {name for name in ALL if name not in frozen} - {"plain"}
    assert not bundle.manifest.state
    for number, make in enumerate(OPTIMIZERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        optimizer = make(keras.optimizers)
        batches = cases.write(case, cases.with_optimizer(bundle, optimizer), folder)
        reference = cases.trained_by_keras(case, model, batches, make)
        for device in devices:
            prediction = np.asarray(model(batches["x"][0], training=False))
            found = cases.difference(device.train(folder), reference, prediction, optimizer)
            assert max(found.weights, found.prediction) <= found.limit, f"{device.runtime}: {found}"
            assert found.losses <= found.loss_limit, f"{device.runtime}: {found}"


def _compile(model: Any, **options: Any) -> Bundle:
    import pollen.compiler

    return pollen.compiler.compile(model, loss="mse", batch=cases.BATCH, name="case", **options)


def test_layers_frozen_in_the_model_are_frozen_in_the_bundle(model: Any) -> None:
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name in ("batch", "hidden"):
        copy.get_layer(name).trainable = False
    bundle = _compile(copy)
    assert _names(bundle.manifest.frozen) == {"batch", "hidden"}
    assert bundle.manifest == replace(
        _compile(model, frozen=["hidden", "batch"]).manifest, architecture=bundle.manifest.architecture
    )
    assert copy.get_layer("plain").trainable
    kept = dict(zip([tensor.name for tensor in bundle.manifest.frozen], _parts(bundle), strict=True))
    np.testing.assert_array_equal(kept["batch/moving_mean"], np.asarray(model.get_layer("batch").moving_mean))


def _parts(bundle: Bundle) -> list[Any]:
    sizes = np.cumsum([tensor.size for tensor in bundle.manifest.frozen])
    return np.split(bundle.frozen, sizes[:-1])


def test_freezing_leaves_the_model_as_it_was(model: Any) -> None:
    _compile(model, last_layer_only=True)
    assert all(layer.trainable for layer in model.layers)


def test_a_personal_layer_is_trained_but_not_shared(model: Any) -> None:
    manifest = _compile(model, personal=["last", "batch"]).manifest
    assert _names(manifest.weights) == set(ALL) - {"plain"}
    assert _names(manifest.state) == {"batch", "plain"}
    assert _names(manifest.shared) == {"convolution", "hidden", "plain", "layer"}
    assert manifest.personal == ("batch", "last")
    assert _compile(model).manifest.shared_size - manifest.shared_size == 4 * 6 + 12 * 3 + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"frozen": ["flat"]},
            "frozen layer 'flat': .* has no layer with weights of this name, but convolution",
        ),
        ({"frozen": ["activation"]}, "frozen layer 'activation'"),
        ({"frozen": ALL}, "has nothing to train"),
        ({"frozen": [name for name in ALL if name != "plain"]}, "has nothing to train"),
        ({"personal": ["hiden"]}, "personal layer 'hiden' has nothing that is trained; one of .*hidden.* does"),
        ({"personal": ["hidden"], "frozen": ["hidden"]}, "personal layer 'hidden' has nothing that is trained"),
        ({"personal": [name for name in ALL if name != "plain"]}, "all layers are personal"),
    ],
)
def test_layers_that_can_not_be_frozen_or_personal_are_named(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        _compile(model, **options)
    assert "\n" not in str(caught.value)


def test_one_variable_frozen_for_itself_is_refused(model: Any) -> None:
    import keras

    copy = keras.models.clone_model(model)
    copy.get_layer("hidden").kernel.trainable = False
    with pytest.raises(CompileError, match=r"'hidden/kernel' is frozen, but not its layer"):
        _compile(copy)
