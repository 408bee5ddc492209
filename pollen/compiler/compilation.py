"""`compile`: a Keras model, a loss and an optimizer to a bundle."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from pollen.bundle import Bundle, Manifest
from pollen.compiler import device_form, graph, layers, losses, models, optimizers, verification, weights
from pollen.compiler.quiet import native_stderr_to_log
from pollen.errors import BundleError, CompileError

logger = logging.getLogger(__name__)


def compile(  # noqa: A001 - the name users know from Keras
    model: Any,
    *,
    loss: Any,
    optimizer: Any = "adam",
    learning_rate: float | None = None,
    batch: int = 16,
    name: str | None = None,
    personal: Sequence[str] = (),
    frozen: Sequence[str] = (),
    last_layer_only: bool = False,
) -> Bundle:
    """Compile a built Sequential or functional `model` for training on devices.

    `loss`: one of `pollen.objective.LOSSES`, or the Keras loss object. `optimizer`: "sgd", "momentum", "nesterov",
    "adam", "adamw", "rmsprop" or "adagrad", or the keras.optimizers object with its constants, clipping and
    learning-rate schedule; `learning_rate` overrides its own. `batch`: examples in a step, fixed in the graph.
    `name`: of the model on the wire, by default made from the model's.
    `personal`: names of layers that each device trains for itself and never sends. `frozen`: names of layers that stay
    as they are, beside those with trainable=False; `last_layer_only`: all but the last that has weights.
    The bundle's first weights are the model's. The model isn't changed. The graph's loss, gradient and prediction
    were compared with Keras's when this returns.
    Raises CompileError naming the layer or setting that can't be compiled, and what can.
    """
    if keras.backend.backend() != "tensorflow":
        raise CompileError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    layers.check(model)
    fixed = _frozen(model, frozen, last_layer_only)
    parsed = losses.parse(loss, model)
    output_shape = tuple(model.outputs[0].shape[1:])
    label_shape, label_dtype = losses.labels(parsed, output_shape)
    traced, noisy = device_form.copy(model, "training", fixed)
    variables = weights.variables(traced)
    if not variables.trained:
        raise CompileError(f"model {model.name!r} has nothing to train; add a Dense layer, or freeze less")
    try:
        manifest = Manifest(
            model=wire_name(model.name) if name is None else name,
            weights=tuple(tensor for tensor, _ in variables.trained),
            state=tuple(tensor for tensor, _ in variables.state),
            frozen=tuple(tensor for tensor, _ in variables.frozen),
            personal=tuple(sorted(set(personal))),
            input_shape=tuple(model.inputs[0].shape[1:]),
            input_dtype=model.inputs[0].dtype,
            input_below=layers.input_below(model) if model.inputs[0].dtype == "int32" else 0,
            output_shape=output_shape,
            label_shape=label_shape,
            label_dtype=label_dtype,
            batch=batch,
            noise=device_form.noise_shapes(noisy, batch),
            loss=parsed,
            optimizer=optimizers.parse(optimizer, learning_rate),
            keras_version=keras.__version__,
            tensorflow_version=tf.__version__,
            architecture=models.architecture(model),
        )
        logger.info("converting model %s with %d parameters", manifest.model, manifest.parameters)
        with native_stderr_to_log():
            converted = graph.convert(traced, noisy, manifest)
            logger.info("comparing it with Keras")
            first, state, constant = (weights.flat(v) for v in (variables.trained, variables.state, variables.frozen))
            bundle = Bundle(manifest, converted, first, state, constant)
            worst = verification.check(bundle, model, fixed)
    except BundleError as error:
        raise CompileError(f"model {model.name!r}: {error}") from error
    logger.info("model %s agrees with Keras within %.1e", manifest.model, worst)
    return bundle


def _frozen(model: Any, names: Sequence[str], last_layer_only: bool) -> frozenset[str]:
    """The layers to freeze. Raises CompileError for a name that no layer with weights has."""
    known = [layer.name for layer in model.layers if layer.weights]
    for name in names:
        if name not in known:
            raise CompileError(
                f"frozen layer {name!r}: model {model.name!r} has no layer with weights of this name, "
                f"but {', '.join(known)}"
            )
    if not last_layer_only:
        return frozenset(names)
    trained = [layer.name for layer in model.layers if layer.trainable_variables and layer.name not in names]
    # Also those that only have moving averages.
    return frozenset({*names, *(name for name in known if name not in trained[-1:])})


def wire_name(name: str) -> str:
    """A legal model name made from any text."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).lstrip("_-")[:64] or "model"
