"""One comparison: 20 steps of Keras's train_on_batch and of the device, from the same weights and batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from pollen.bundle import Bundle

STEPS: Final = 20
BATCH: Final = 16
# Below this share of a step's largest gradient, float32 sums taken in another order differ in sign.
ROUNDING: Final = 1e-5
ADAPTIVE: Final = ("Adam", "AdamW", "RMSprop", "Adagrad")

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, a loss and an optimizer.

    `build(layers)` gives a list of layers, the Input first, or a keras.Model; take every layer from `layers`, since
    the reference gets another Dropout there. `loss`: a name, or made by a function of keras.losses; a cross-entropy
    given by name is of logits where the model ends linearly. `optimizer`: made by a function of keras.optimizers.
    `x(rng)` and `y(rng)`, [STEPS, BATCH, …], replace the random ones; `weighted`: with random sample weights.
    `options` are more of compile's; `prepare(model)` changes the reference accordingly.
    """

    build: Callable[[Any], Any]
    loss: str | Callable[[Any], Any] = "mse"
    optimizer: Callable[[Any], Any] = lambda optimizers: optimizers.SGD(0.05)
    x: Callable[[np.random.Generator], Any] | None = None
    y: Callable[[np.random.Generator], Any] | None = None
    weighted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """What Keras ends with: trained weights, state, the losses of the steps, and what it began with."""

    start: Any
    weights: Any
    state: Any
    losses: Any


def compiled(case: Case) -> tuple[Any, Bundle]:
    """The case's Keras model and its bundle."""
    import keras

    import pollen.compiler

    keras.utils.set_random_seed(case.seed)
    model = _model(case, keras.layers)
    loss = case.loss if isinstance(case.loss, str) else case.loss(keras.losses)
    optimizer = case.optimizer(keras.optimizers)
    bundle = pollen.compiler.compile(
        model, loss=loss, optimizer=optimizer, batch=BATCH, name="case", **dict(case.options)
    )
    return model, bundle


def write(case: Case, bundle: Bundle, folder: Path) -> Arrays:
    """The bundle and its batches, for `device_steps.py`; returns the batches."""
    rng = np.random.default_rng(case.seed)
    batches = {
        "x": _inputs(bundle, rng) if case.x is None else case.x(rng),
        "y": _labels(bundle, rng) if case.y is None else case.y(rng),
    }
    if case.weighted:
        batches["sample_weight"] = rng.random((STEPS, BATCH), np.float32) * np.float32(2)
    for index, shape in enumerate(bundle.manifest.noise):
        batches[f"u{index}"] = rng.random((STEPS, *shape), np.float32)
    np.savez(folder / "batches.npz", **batches)
    bundle.write(folder / "model.bundle")
    return batches


def trained_by_keras(case: Case, model: Any, batches: Arrays, optimizer: Callable[[Any], Any]) -> Reference:
    """20 times `train_on_batch`, from the weights of `model`, which isn't changed."""
    import keras

    uniforms: list[Any] = []
    layers = SimpleNamespace(**vars(keras.layers))
    layers.Dropout = _fixed_dropout(uniforms)
    reference = _model(case, layers)
    if case.prepare is not None:
        case.prepare(reference)
    given = {id(uniform) for uniform in uniforms}
    floats = [v for v in reference.variables if "float" in str(v.dtype) and id(v) not in given]
    for target, source in zip(floats, _floats(model), strict=True):
        target.assign(source)
    start = _flat(reference.trainable_variables)
    reference.compile(optimizer=optimizer(keras.optimizers), loss=_keras_loss(case, reference))
    losses = []
    for index in range(STEPS):
        for number, uniform in enumerate(uniforms):
            uniform.assign(batches[f"u{number}"][index])
        reference.reset_metrics()
        weight = batches["sample_weight"][index] if case.weighted else None
        losses.append(float(reference.train_on_batch(batches["x"][index], batches["y"][index], sample_weight=weight)))
    moves = {id(v) for layer in reference.layers if layer.trainable for v in layer.non_trainable_variables}
    moving = [v for v in reference.non_trainable_variables if "moving_" in v.name and id(v) in moves]
    return Reference(start, _flat(reference.trainable_variables), _flat(moving), np.array(losses))


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences between a device and Keras, and what is allowed."""

    weights: float
    state: float
    losses: float
    prediction: float
    limit: float
    loss_limit: float


def difference(found: Arrays, expected: Reference, prediction: Any, optimizer: Any) -> Difference:
    """Compare what the device wrote with Keras's; `prediction`: Keras's for the first batch, before training."""
    moved = np.abs(expected.weights - expected.start)
    assert moved.max() > 1e-3, "Keras has to have learned something for this to mean anything"
    apart = np.abs(found["weights"] - expected.weights)
    limit, loss_limit = 1e-5, 1e-4
    if type(optimizer).__name__ in ADAPTIVE:
        # They divide by the gradient's size, so where that is rounding noise, so is the step.
        gradients = np.abs(found["gradients"])
        noise = (gradients > 0) & (gradients <= ROUNDING * gradients.max(axis=1, keepdims=True))
        certain = ~noise.any(axis=0)
        assert certain.mean() > 0.2
        apart, limit, loss_limit = apart[certain], 1e-4, 1e-3
    return Difference(
        weights=_worst(apart),
        state=_worst(np.abs(found["state"] - expected.state)) if len(expected.state) else 0.0,
        losses=_worst(np.abs(found["losses"] - expected.losses)),
        prediction=_worst(np.abs(found["prediction"] - prediction)),
        limit=limit,
        loss_limit=loss_limit,
    )


def with_optimizer(bundle: Bundle, optimizer: Any) -> Bundle:
    """The bundle with another optimizer, which stands only in its manifest."""
    from pollen.compiler import optimizers

    return replace(bundle, manifest=replace(bundle.manifest, optimizer=optimizers.parse(optimizer, None)))


def _model(case: Case, layers: Any) -> Any:
    import keras

    built = case.build(layers)
    return built if isinstance(built, keras.Model) else keras.Sequential(built)


def _floats(model: Any) -> list[Any]:
    return [variable for variable in model.variables if "float" in str(variable.dtype)]


def _flat(variables: Any) -> Any:
    return np.concatenate([np.zeros(0, np.float32), *(np.asarray(variable).ravel() for variable in variables)])


def _worst(values: Any) -> float:
    """The largest of `values`; NaN when one is."""
    return float(np.max(values))


def _inputs(bundle: Bundle, rng: np.random.Generator) -> Any:
    manifest = bundle.manifest
    shape = (STEPS, BATCH, *manifest.input_shape)
    if manifest.input_dtype == "int32":
        return rng.integers(0, manifest.input_below, shape, np.int32)
    return rng.standard_normal(shape, np.float32)


def _labels(bundle: Bundle, rng: np.random.Generator) -> Any:
    manifest = bundle.manifest
    shape = (STEPS, BATCH, *manifest.label_shape)
    if manifest.loss.name == "sparse_categorical_crossentropy":
        return rng.integers(0, manifest.output_shape[-1], shape, np.int32)
    if manifest.loss.name == "categorical_crossentropy":
        count = manifest.output_shape[-1]
        return np.eye(count, dtype=np.float32)[rng.integers(0, count, shape[:-1])]
    if manifest.loss.name == "binary_crossentropy":
        return rng.integers(0, 2, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32)


def _keras_loss(case: Case, model: Any) -> Any:
    import keras

    if not isinstance(case.loss, str):
        return case.loss(keras.losses)
    loss: Any = keras.losses.get(case.loss)
    last = getattr(model.layers[-1], "activation", keras.activations.linear)
    if case.loss.endswith("crossentropy") and last is keras.activations.linear:
        return {
            "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
            "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
            "binary_crossentropy": keras.losses.BinaryCrossentropy,
        }[case.loss](from_logits=True)
    return loss


def _fixed_dropout(uniforms: list[Any]) -> Any:
    """A Dropout for the reference that takes its uniform numbers from a Keras variable: TensorFlow's own formula."""
    import keras

    class FixedDropout(keras.layers.Layer):
        def __init__(self, rate: float, **more: Any) -> None:
            super().__init__(**more)
            self.rate = rate

        def build(self, shape: Any) -> None:
            self.uniform = self.add_weight(shape=(BATCH, *shape[1:]), trainable=False, name="uniform")
            uniforms.append(self.uniform)

        def call(self, inputs: Any, training: bool = False) -> Any:
            scaled = inputs * (1 / (1 - self.rate))
            return keras.ops.where(self.uniform >= self.rate, scaled, 0.0) if training else inputs

    return FixedDropout
