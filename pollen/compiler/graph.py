"""Tracing a model into its two functions, and converting them to one .tflite file."""

import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby, zip_longest
from typing import Any, Final

import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from pollen.bundle import Loss, Manifest, Tensor
from pollen.compiler import losses
from pollen.compiler.device_form import HostNoiseDropout
from pollen.compiler.gradients import overrides
from pollen.compiler.weights import variables
from pollen.errors import CompileError

_MOST_AXES: Final = 4  # of a product in which any axes may be repeated


def loss_and_gradients(
    model: Any,
    noisy: list[HostNoiseDropout],
    loss: Loss,
    *,
    weights: list[Any],
    state: list[Any],
    batch: dict[str, Any],
) -> tuple[Any, list[Any], list[Any]]:
    """The training loss, scalar, its gradient for each of `weights`, and the next state, traced into the current graph.

    `weights` and `state` in the order of `weights.variables(model)`; `batch` holds x, y, sample_weight and u0, u1, …
    for the layers in `noisy`.
    """
    for index, layer in enumerate(noisy):
        layer.uniform.values = batch[f"u{index}"]
    output, new_state, penalties = call(model, weights, state, batch["x"], training=True)
    mean = losses.weighted_mean(losses.per_example(loss, batch["y"], output), batch["sample_weight"])
    total = tf.add_n([mean, *penalties])
    gradients = tf.gradients(total, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return total, gradients, new_state


def call(
    model: Any, weights: list[Any], state: list[Any], x: Any, *, training: bool
) -> tuple[Any, list[Any], list[Any]]:
    """The model's output, its next state and its regularisers' penalties; what is frozen enters as constants."""
    moving = {id(variable): value for (_, variable), value in zip(variables(model).state, state, strict=True)}
    rest = model.non_trainable_variables
    with tf.init_scope():  # outside the graph that is being traced, where variables have values
        constants = {id(variable): variable.numpy() for variable in rest if id(variable) not in moving}
    values = [moving[id(v)] if id(v) in moving else tf.constant(constants[id(v)]) for v in rest]
    output, after, penalties = model.stateless_call(weights, values, x, training=training, return_losses=True)
    after_state = [value for variable, value in zip(rest, after, strict=True) if id(variable) in moving]
    return output, after_state, penalties


def convert(model: Any, noisy: list[HostNoiseDropout], manifest: Manifest) -> bytes:
    """The .tflite file with the signatures `grad` and `infer`, of builtin ops only.

    Raises CompileError when the converter refuses the graph or an op is left that only TensorFlow has.
    """
    module = tf.Module()
    # Attributes of a tf.Module keep the traced functions alive until they are saved.
    module.grad = tf.function(_gradient_function(model, noisy, manifest), autograph=False)
    module.infer = tf.function(_inference_function(model, manifest), autograph=False)
    try:
        signatures = {
            "grad": module.grad.get_concrete_function(**_specs(manifest, training=True)),
            "infer": module.infer.get_concrete_function(**_specs(manifest, training=False)),
        }
        graph = to_tflite(module, signatures)
    except CompileError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"model {manifest.model}: TensorFlow Lite can't hold it: {lines[0]}") from error
    check_builtin_only(graph, manifest.model)
    check_products(graph, manifest.model)
    return graph


def _specs(manifest: Manifest, training: bool) -> dict[str, Any]:
    """The signature's inputs. None may be of rank 0: ai-edge-litert crashes on those on emulated aarch64."""
    batch = manifest.batch
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "w": ((manifest.parameters,), "float32"),
        "x": ((batch, *manifest.input_shape), manifest.input_dtype),
    }
    if manifest.state:
        shapes["s"] = ((manifest.state_size,), "float32")
    if training:
        shapes["y"] = ((batch, *manifest.label_shape), manifest.label_dtype)
        shapes["sample_weight"] = ((batch,), "float32")
        shapes |= {f"u{index}": (shape, "float32") for index, shape in enumerate(manifest.noise)}
    return {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in shapes.items()}


def _gradient_function(model: Any, noisy: list[HostNoiseDropout], manifest: Manifest) -> Any:
    def grad(**inputs: Any) -> dict[str, Any]:
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map(overrides()):
            weights = _unflatten(inputs["w"], manifest.weights)
            state = _unflatten(inputs["s"], manifest.state) if manifest.state else []
            loss, gradients, after = loss_and_gradients(
                model, noisy, manifest.loss, weights=weights, state=state, batch=inputs
            )
        results = {"loss": tf.reshape(loss, [1]), "g": _flatten(gradients)}
        return results | {"s_new": _flatten(after)} if manifest.state else results

    return grad


def _inference_function(model: Any, manifest: Manifest) -> Any:
    def infer(**inputs: Any) -> dict[str, Any]:
        weights = _unflatten(inputs["w"], manifest.weights)
        state = _unflatten(inputs["s"], manifest.state) if manifest.state else []
        return {"y": call(model, weights, state, inputs["x"], training=False)[0]}

    return infer


def _unflatten(values: Any, tensors: Sequence[Tensor]) -> list[Any]:
    parts = tf.split(values, [tensor.size for tensor in tensors])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _flatten(values: Sequence[Any]) -> Any:
    return tf.concat([tf.reshape(value, [-1]) for value in values], 0)


def to_tflite(module: Any, signatures: dict[str, Any], adjust: Callable[[Any], None] | None = None) -> bytes:
    """The .tflite file with `signatures` of `module`; `adjust` may change the converter's settings before it runs."""
    with tempfile.TemporaryDirectory() as folder:
        # With custom gradients the export fails, since ours belong to this process only.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = False
        if adjust is not None:
            adjust(converter)
        return bytes(converter.convert())


def check_builtin_only(graph: bytes, model: str) -> None:
    """Raise CompileError when `graph` holds an op that only TensorFlow has."""
    root = schema.Model.GetRootAs(graph, 0)
    for index in range(root.OperatorCodesLength()):
        code = root.OperatorCodes(index)
        # Files written for old readers keep the op in the deprecated field.
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) == schema.BuiltinOperator.CUSTOM:
            raise CompileError(f"model {model}: op {(code.CustomCode() or b'?').decode()} is no TFLite builtin")


def check_products(graph: bytes, model: str) -> None:
    """Raise CompileError for a product that ends tflite-runtime 2.14's process.

    Its own MUL, which runs where XNNPACK doesn't, aborts for tensors of more than four axes when one is repeated along
    axes that fall, in order, into more than three runs of repeated and equal ones. Sums, differences, quotients and
    maxima of the same shapes are right.
    """
    root = schema.Model.GetRootAs(graph, 0)
    codes = [root.OperatorCodes(index) for index in range(root.OperatorCodesLength())]
    products = {
        index
        for index, code in enumerate(codes)
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) == schema.BuiltinOperator.MUL
    }
    for number in range(root.SubgraphsLength()):
        subgraph = root.Subgraphs(number)
        for index in range(subgraph.OperatorsLength()):
            op = subgraph.Operators(index)
            if op.OpcodeIndex() not in products:
                continue
            first, second = (subgraph.Tensors(op.Inputs(place)).ShapeAsNumpy().tolist() for place in (0, 1))
            axes = list(zip_longest(reversed(first), reversed(second), fillvalue=1))
            runs = list(groupby(axes, lambda sizes: (sizes[0] < sizes[1], sizes[0] > sizes[1])))
            if len(axes) > _MOST_AXES and len(runs) > _MOST_AXES - 1:
                name = subgraph.Tensors(op.Outputs(0)).Name().decode()
                raise CompileError(
                    f"model {model}: {name!r} multiplies {first} by {second}, which tflite-runtime can't compute; "
                    "put a Reshape to fewer axes before it"
                )
