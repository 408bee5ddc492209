"""Comparing a converted graph with Keras before anyone trains with it: converters have been silently wrong."""

import math
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import tensorflow as tf

from pollen import interpreter
from pollen.bundle import Bundle, Floats, Manifest
from pollen.compiler import device_form, weights
from pollen.compiler.graph import loss_and_gradients
from pollen.errors import CompileError
from pollen.objective import CLASSIFICATION_LOSSES

TOLERANCE: Final = 1e-4  # of the largest value; agreement is mostly within 1e-6
ATTEMPTS: Final = 3


def check(bundle: Bundle, model: Any, frozen: Collection[str] = ()) -> float:
    """Compare loss, gradient, state and prediction on a random batch; the worst relative difference.

    `frozen`: the layers that were frozen for this bundle.

    Raises CompileError when they differ by more than `TOLERANCE` on each of `ATTEMPTS` batches: on a single
    one, an activation that lies within rounding of its kink may rightly get another gradient.
    """
    device = interpreter.load(bundle, "litert")
    # Keras's own layers and gradients but for the source of dropout's numbers.
    clone, noisy = device_form.copy(model, "reference", frozen)
    variables = weights.variables(clone)

    def reference(**batch: Any) -> Any:
        trained = [tf.convert_to_tensor(variable) for _, variable in variables.trained]
        state = [tf.convert_to_tensor(variable) for _, variable in variables.state]
        return loss_and_gradients(clone, noisy, bundle.manifest.loss, weights=trained, state=state, batch=batch)

    # In a graph, as train_on_batch is: there Keras takes the loss of softmax and sigmoid from their logits.
    traced = tf.function(reference, autograph=False)
    differences = []
    for seed in range(ATTEMPTS):
        differences.append(_compare(bundle, device, model, traced, seed))
        if max(differences[-1].values()) <= TOLERANCE:
            break
    best = min(differences, key=lambda found: max(found.values()))
    worst = max(best.values())
    if not worst <= TOLERANCE:
        what = ", ".join(f"{name} by {value:.1e}" for name, value in best.items() if not value <= TOLERANCE)
        raise CompileError(
            f"model {bundle.manifest.model}: the converted graph differs from Keras ({what}); "
            "please report it with the model"
        )
    return worst


def _compare(
    bundle: Bundle, device: interpreter.TrainingGraph, model: Any, reference: Any, seed: int
) -> dict[str, float]:
    manifest = bundle.manifest
    rng = np.random.default_rng(seed)
    x = random_inputs(manifest, manifest.batch, rng)
    y = _labels(bundle, rng)
    noise = [rng.random(shape, np.float32) for shape in manifest.noise]
    weight = rng.random(manifest.batch, np.float32) + np.float32(0.5)
    step = device.gradient(bundle.weights, x, y, bundle.state, noise, sample_weight=weight)
    inputs = {"x": x, "y": y, "sample_weight": weight} | {f"u{index}": u for index, u in enumerate(noise)}

    loss, gradients, state = reference(**{name: tf.constant(value) for name, value in inputs.items()})
    expected, after = (
        # An Embedding's gradient comes as slices.
        np.concatenate([np.zeros(0), *(np.ravel(tf.convert_to_tensor(v)) for v in values)])
        for values in (gradients, state)
    )
    prediction = np.asarray(model(x, training=False))
    return {
        "loss": relative_difference(np.float32(step.loss), loss.numpy()),
        "gradient": relative_difference(step.gradient, expected),
        "prediction": relative_difference(device.predict(bundle.weights, x, bundle.state), prediction),
        "state": relative_difference(step.state, after) if len(after) else 0.0,
    }


def random_inputs(manifest: Manifest, count: int, rng: np.random.Generator) -> Any:
    """`count` inputs [count, …] that the model takes: normally distributed, or any of its integers."""
    shape = (count, *manifest.input_shape)
    if manifest.input_dtype == "int32":
        return rng.integers(0, manifest.input_below, shape, np.int32)
    return rng.standard_normal(shape, np.float32)


def _labels(bundle: Bundle, rng: np.random.Generator) -> Any:
    manifest = bundle.manifest
    shape = (manifest.batch, *manifest.label_shape)
    if manifest.label_dtype == "int32":
        return rng.integers(0, manifest.output_shape[-1], shape, np.int32)
    if manifest.loss.name not in CLASSIFICATION_LOSSES:
        return rng.standard_normal(shape, np.float32)
    values = rng.random(shape, np.float32)
    return values / values.sum(-1, keepdims=True) if manifest.loss.name == "categorical_crossentropy" else values


def relative_difference(found: Floats | np.float32, expected: Any) -> float:
    """The worst difference as a share of the largest expected value; infinite where there is NaN or infinity."""
    worst = float(np.max(np.abs(found - expected)) / max(float(np.max(np.abs(expected))), 1e-6))
    # NaN would be lost in max() and min(), which find it neither larger nor smaller.
    return worst if math.isfinite(worst) else math.inf
