"""Inference graphs: a model with given weights as constants, in float32 or quantised, for devices that mostly predict.

Smaller and quicker than a bundle's `infer`, which takes the weights as an input. Quantisation: Jacob et al. 2018,
Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference; done by TensorFlow Lite.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tensorflow as tf

from pollen import interpreter, scoring
from pollen.bundle import Bundle, Floats
from pollen.compiler import device_form, graph, models, weights
from pollen.compiler.quiet import native_stderr_to_log
from pollen.compiler.verification import TOLERANCE, random_inputs, relative_difference
from pollen.errors import CompileError, InterpreterError
from pollen.examples import Array, Examples
from pollen.inference_graph import InferenceGraph
from pollen.manifest import Manifest
from pollen.messages import GraphKind

SAMPLES: Final = 256  # that ranges are calibrated with; more change little
RANDOM: Final = 64  # examples to compare on where none are given


@dataclass(frozen=True, slots=True)
class Conversion:
    """A graph of the signature `infer(x[1, …]) -> y`, and what its conversion cost.

    `float_bytes`: the size of the same graph in float32. `metrics`: "max_difference" and "mean_difference" of its
    outputs from the training graph's, and with labels "loss", "error", "float_loss" and "float_error": the model's loss
    and its share of wrong classes or mean absolute error, in this graph and in the training graph.
    """

    kind: GraphKind
    graph: bytes
    float_bytes: int
    metrics: dict[str, float]


def make(
    bundle: Bundle,
    kind: GraphKind,
    *,
    shared: Mapping[str, Floats] | None = None,
    calibration: Examples | None = None,
    holdout: Examples | None = None,
    max_added_error: float | None = None,
) -> Conversion:
    """The inference graph of `bundle` with the weights `shared`, one array for each name in `manifest.shared`.

    Left out, they are the bundle's; personal and frozen layers always are. `kind` "float32"; "dynamic": int8 weights,
    activations quantised as they come; "int8": integers throughout, with float32 in and out, and ranges calibrated on
    `calibration`. One example at a time: that is how a device's predictions come, and a larger batch would be padded.
    Ops are builtin ones, so it runs on both interpreters. It was run on `holdout`, or else `calibration` or random
    examples, when this returns.
    Raises CompileError: the weights don't fit; "int8" without calibration; an op that has no integer form; a float32
    graph that differs from the training graph; a quantised one that isn't smaller, or whose error is more than
    `max_added_error` above the training graph's.
    """
    manifest = bundle.manifest
    values = _values(bundle, shared or {})
    if kind == "int8" and calibration is None:
        raise CompileError("kind int8 needs calibration: some hundred inputs as the model sees them")
    model = _model(manifest, values)
    plain = _convert(model, manifest, "float32", None)
    made = plain if kind == "float32" else _convert(model, manifest, kind, calibration)
    if kind != "float32" and len(made) >= len(plain):
        raise CompileError(
            f"model {manifest.model}: as {kind} it has {len(made)} bytes, as float32 {len(plain)}; use float32"
        )
    metrics = _compare(bundle, values, made, kind, holdout or calibration)
    if max_added_error is not None:
        _check_error(f"model {manifest.model}: as {kind}", metrics, max_added_error)
    return Conversion(kind, made, len(plain), metrics)


def _check_error(what: str, metrics: Mapping[str, float], most: float) -> None:
    if "error" not in metrics:
        raise CompileError(f"{what} its error can't be measured; give holdout examples with labels")
    after, before = metrics["error"], metrics["float_error"]
    if not after - before <= most:
        raise CompileError(f"{what} its error is {after:.4g}, as trained {before:.4g}: more than {most:g} above")


def _values(bundle: Bundle, shared: Mapping[str, Floats]) -> dict[str, Floats]:
    """Every float variable by name."""
    manifest = bundle.manifest
    known = {tensor.name: tensor for tensor in manifest.shared}
    if shared and set(shared) != set(known):
        missing, extra = sorted(set(known) - set(shared)), sorted(set(shared) - set(known))
        raise CompileError(f"the weights don't fit model {manifest.model}; missing {missing}, unknown {extra}")
    values = bundle.values()
    for name, array in shared.items():
        tensor = known[name]
        if array.dtype != np.float32 or array.shape != tensor.shape or not np.isfinite(array).all():
            raise CompileError(f"weights {name!r} must be finite float32 {list(tensor.shape)}")
        # Merge rules and lossy encodings may overshoot, and a variance below 0 has no root.
        values[name] = np.maximum(array, 0) if tensor.is_variance else array
    return values


def _model(manifest: Manifest, values: Mapping[str, Floats]) -> Any:
    source = f"bundle of model {manifest.model}"
    model, _ = device_form.copy(models.from_architecture(manifest.architecture, source), "inference")
    for tensor, variable in weights.variables(model).all():
        if tensor.name not in values:
            raise CompileError(f"{source}: it holds no weights {tensor.name!r}; compile it again")
        variable.assign(values[tensor.name])
    return model


def _convert(model: Any, manifest: Manifest, kind: GraphKind, calibration: Examples | None) -> bytes:
    variables = weights.variables(model)
    trained, state = ([tf.constant(v.numpy()) for _, v in role] for role in (variables.trained, variables.state))

    def infer(x: Any) -> dict[str, Any]:
        return {"y": graph.call(model, trained, state, x, training=False)[0]}

    module = tf.Module()
    module.infer = tf.function(infer, autograph=False)
    spec = tf.TensorSpec((1, *manifest.input_shape), manifest.input_dtype, name="x")
    try:
        with native_stderr_to_log():
            signatures = {"infer": module.infer.get_concrete_function(x=spec)}
            converted = graph.to_tflite(module, signatures, _settings_of(kind, calibration))
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        other = "use kind dynamic or float32" if kind == "int8" else "use kind float32"
        raise CompileError(f"model {manifest.model} can't be made {kind}: {lines[0]}; {other}") from error
    graph.check_builtin_only(converted, manifest.model)
    return converted


def _settings_of(kind: GraphKind, calibration: Examples | None) -> Callable[[Any], None]:
    def adjust(converter: Any) -> None:
        if kind == "float32":
            return
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # tflite-runtime 2.14 has no dense layer with a scale for each channel.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        if kind == "int8" and calibration is not None:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _one_by_one(calibration.x)

    return adjust


def _one_by_one(x: Array) -> Iterator[dict[str, Array]]:
    step = max(1, len(x) // SAMPLES)
    for index in range(0, min(len(x), step * SAMPLES), step):
        yield {"x": x[index : index + 1]}


def _compare(
    bundle: Bundle, values: Mapping[str, Floats], made: bytes, kind: GraphKind, examples: Examples | None
) -> dict[str, float]:
    """What the graph answers beside what the training graph does with the same weights. Raises CompileError."""
    manifest = bundle.manifest
    found = examples or Examples(random_inputs(manifest, RANDOM, np.random.default_rng(0)), None)
    flat = [
        np.concatenate([np.zeros(0, np.float32), *(values[tensor.name].ravel() for tensor in tensors)])
        for tensors in (manifest.weights, manifest.state)
    ]
    expected = interpreter.load(bundle, "litert").predict(flat[0], found.x, flat[1])
    try:
        output = InferenceGraph(made, manifest, "litert").predict(found.x)
    except InterpreterError as error:
        raise CompileError(f"model {manifest.model}, kind {kind}: {error}") from error
    if not np.isfinite(output).all():
        raise CompileError(f"model {manifest.model}: as {kind} it predicts NaN or infinity; use another kind")
    if kind == "float32" and not (worst := relative_difference(output, expected)) <= TOLERANCE:
        raise CompileError(
            f"model {manifest.model}: its float32 graph differs from the training graph by {worst:.1e} of the largest "
            "output; please report it with the model"
        )
    difference = np.abs(output - expected)
    metrics = {"max_difference": float(difference.max()), "mean_difference": float(difference.mean())}
    if found.y is not None:
        for prefix, answer in (("", output), ("float_", expected)):
            metrics[f"{prefix}loss"] = scoring.mean_loss(manifest.loss, answer, found.y)
            metrics[f"{prefix}error"] = float(scoring.errors(manifest.loss, answer, found.y).mean())
    return metrics
