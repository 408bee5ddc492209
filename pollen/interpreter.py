"""The training graph on the device interpreter: gradients and predictions with numpy, without TensorFlow.

Two interpreters run a bundle's graph: ai-edge-litert (up to twice as fast) and tflite-runtime (2 MB, and the
only one for 32-bit Raspberry Pis). Every array handed out is a copy; none aliases the interpreter's memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from pollen.bundle import Bundle, Floats, Manifest, Shape
from pollen.errors import InterpreterError

Runtime = Literal["auto", "litert", "tflite"]
Array = npt.NDArray[Any]
if TYPE_CHECKING:  # numpy.random takes 2 MB, and only dropout needs it
    Noise = np.random.Generator | Sequence[Floats]

_PACKAGES: Final[dict[str, tuple[str, str, str]]] = {
    "litert": ("ai_edge_litert", "ai-edge-litert", "pip install 'pollen-fl[edge]'"),
    "tflite": (
        "tflite_runtime",
        "tflite-runtime",
        "pip install 'pollen-fl[edge-tflite]' (Python 3.11, numpy < 2)",
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch gives: its loss, the gradient float32 [P] of it, and the next state float32 [S]."""

    loss: float
    gradient: Floats
    state: Floats


def load(bundle: Bundle, runtime: Runtime = "auto", threads: int = 1) -> TrainingGraph:
    """Load a bundle's graph; "auto" takes ai-edge-litert when it works, else tflite-runtime.

    One thread is the right number for small models: two made a step 11 times slower on tflite-runtime.
    Raises InterpreterError when no interpreter works (saying what to install), or the graph doesn't fit its
    manifest.
    """
    return TrainingGraph(bundle.manifest, *open_graph(bundle.graph, bundle.manifest.model, runtime, threads))


def open_graph(graph: bytes, model: str, runtime: Runtime = "auto", threads: int = 1) -> tuple[Any, str]:
    """(interpreter of the .tflite file `graph` of `model`, its name and version); for the rest see `load`."""
    if runtime != "auto" and runtime not in _PACKAGES:
        raise InterpreterError(f"interpreter {runtime!r} is not known; use auto, litert or tflite")
    failures = []
    for name in _PACKAGES if runtime == "auto" else (runtime,):
        module, package, install = _PACKAGES[name]
        try:
            library = importlib.import_module(f"{module}.interpreter")
        except ImportError as error:
            failures.append(f"{package}: {error}; {install}")
            continue
        # Beside numpy 2, tflite-runtime imports well and fails only here.
        try:
            interpreter = library.Interpreter(model_content=graph, num_threads=threads)
        except (ImportError, AttributeError, RuntimeError, ValueError, SystemError) as error:
            failures.append(f"{package} can't load the graph: {message_of(error)}; {install}")
            continue
        version = importlib.import_module(module).__version__
        return interpreter, f"{package} {version}"
    raise InterpreterError(f"no interpreter can run model {model}: {' | '.join(failures)}")


class TrainingGraph:
    """A model's two functions, `gradient` and `predict`, for flat weight vectors. Not for concurrent use."""

    def __init__(self, manifest: Manifest, interpreter: Any, runtime: str) -> None:
        self.manifest = manifest
        self.runtime = runtime
        self._interpreter = interpreter
        self._x_dtype = np.dtype(manifest.input_dtype)
        self._y_dtype = np.dtype(manifest.label_dtype)
        self._no_state = np.zeros(0, np.float32)
        self._full_weight = np.ones(manifest.batch, np.float32)
        # Made at the first short batch, then kept.
        self._padded: dict[str, Array] = {}
        batch, size = manifest.batch, manifest.state_size
        state, after = ({name: (size,)} if size else {} for name in ("s", "s_new"))
        common = {"w": (manifest.parameters,), "x": (batch, *manifest.input_shape), **state}
        noise = {f"u{index}": shape for index, shape in enumerate(manifest.noise)}
        labels = {"y": (batch, *manifest.label_shape), "sample_weight": (batch,)}
        step: dict[str, Shape] = {"g": (manifest.parameters,), "loss": (1,), **after}
        self._grad = self._signature("grad", common | labels | noise, step)
        self._infer = self._signature("infer", common, {"y": (batch, *manifest.output_shape)})

    def gradient(
        self,
        w: Floats,
        x: Array,
        y: Array,
        state: Floats | None = None,
        noise: Noise | None = None,
        *,
        sample_weight: Floats | None = None,
    ) -> Step:
        """The loss of one batch and its gradient with respect to `w`. Raises InterpreterError when the graph fails.

        `w` float32 [P], `x` [b, …] and `y` [b, …] as the manifest says, 1 ≤ b ≤ batch; `state` float32 [S]
        (may be left out when S is 0); `sample_weight` float32 [b], ≥ 0: as Keras has it, the loss is the sum of the
        examples' losses times their weights, divided by b, and the regularisers' penalties. A model with dropout
        takes its uniform numbers from `noise`: a generator, or one array for each shape in `manifest.noise`.
        A short batch is padded and masked. With state (BatchNormalization) padding would enter the
        statistics, so there it raises ValueError, as does any wrong shape, and an integer in `x` that isn't one of
        the model's. NaN in `x`, and a class label that isn't one of the model's, give a loss and gradient of NaN, as
        in TensorFlow: check before stepping.
        """
        batch = self.manifest.batch
        count = len(x)
        if not 1 <= count <= batch or len(y) != count:
            raise ValueError(f"a batch has 1 to {batch} examples with a label each, not {count} with {len(y)} labels")
        if count < batch and self.manifest.state_size:
            raise ValueError(f"{count} of {batch} examples: this model has state, so drop the short batch")
        if sample_weight is None:
            weight = self._full_weight[:count]
        else:
            weight = np.asarray(sample_weight, np.float32)
            if weight.shape != (count,) or not np.isfinite(weight).all() or float(weight.min()) < 0:
                raise ValueError(f"sample_weight must be {count} finite numbers >= 0")
        if count < batch:
            # The graph divides by its batch, Keras by the examples there are.
            weight = weight * np.float32(batch / count)
        result = self._grad(
            w=self._flat("w", w, self.manifest.parameters),
            x=self._batch("x", checked_inputs(self.manifest, x), self._x_dtype, self.manifest.input_shape),
            y=self._batch("y", y, self._y_dtype, self.manifest.label_shape),
            sample_weight=self._batch("sample_weight", weight, np.dtype(np.float32), ()),
            **self._state(state),
            **self._noise(noise),
        )
        return Step(loss=float(result["loss"].item()), gradient=result["g"], state=result.get("s_new", self._no_state))

    def predict(self, w: Floats, x: Array, state: Floats | None = None) -> Floats:
        """The model's output, float32 [n, …], for any number of examples `x` [n, …]; dropout is off.

        Raises ValueError for wrong shapes, and for integers that aren't among the model's, InterpreterError when the
        graph fails.
        """
        batch, shape = self.manifest.batch, self.manifest.output_shape
        x = checked_inputs(self.manifest, x)
        w = self._flat("w", w, self.manifest.parameters)
        states = self._state(state)
        output = np.empty((len(x), *shape), np.float32)
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            y = self._infer(w=w, x=self._batch("x", part, self._x_dtype, self.manifest.input_shape), **states)["y"]
            output[start : start + batch] = y[: len(part)]
        return output

    def _signature(
        self, name: str, inputs: dict[str, Shape], outputs: dict[str, Shape]
    ) -> Callable[..., dict[str, Floats]]:
        """What runs one signature, after its inputs and outputs were compared with the manifest."""
        try:
            runner = self._interpreter.get_signature_runner(name)
            taken, given = (
                {key: tuple(item["shape"].tolist()) for key, item in details.items()}
                for details in (runner.get_input_details(), runner.get_output_details())
            )
        except (RuntimeError, ValueError) as error:
            raise InterpreterError(f"model {self.manifest.model}: {message_of(error)}; compile it again") from error
        for word, found, expected in (("takes", taken, inputs), ("gives", given, outputs)):
            if found != expected:
                raise InterpreterError(
                    f"model {self.manifest.model}: the graph's {name} {word} {found}, "
                    f"its manifest says {expected}; compile it again"
                )

        def run(**values: Array) -> dict[str, Floats]:
            try:
                results: dict[str, Floats] = runner(**values)
            except (RuntimeError, ValueError) as error:
                raise InterpreterError(
                    f"model {self.manifest.model}: the graph's {name} failed: {message_of(error)}; compile it again"
                ) from error
            # What a graph says of itself isn't what it does: a [1] would be broadcast.
            if any(results[key].shape != shape or results[key].dtype != np.float32 for key, shape in outputs.items()):
                found = {key: f"{value.dtype} {list(value.shape)}" for key, value in results.items()}
                raise InterpreterError(
                    f"model {self.manifest.model}: the graph's {name} gives {found}, "
                    f"its manifest says float32 {outputs}; compile it again"
                )
            return results

        return run

    @staticmethod
    def _flat(name: str, values: Floats, size: int) -> Floats:
        values = np.asarray(values, np.float32)
        if values.shape != (size,):
            raise ValueError(f"{name} must be [{size}], not {list(values.shape)}")
        return values

    def _state(self, state: Floats | None) -> dict[str, Floats]:
        size = self.manifest.state_size
        values = self._flat("state", self._no_state if state is None else state, size)
        return {"s": values} if size else {}

    def _noise(self, noise: Noise | None) -> dict[str, Floats]:
        shapes = self.manifest.noise
        if not shapes:
            return {}
        if noise is None:
            raise ValueError(f"this model has dropout: give noise, a generator or {len(shapes)} arrays")
        if isinstance(noise, Sequence):
            arrays = [np.asarray(array, np.float32) for array in noise]
        else:
            arrays = [noise.random(shape, np.float32) for shape in shapes]
        if [array.shape for array in arrays] != list(shapes):
            raise ValueError(f"noise must have the shapes {list(shapes)}")
        return {f"u{index}": array for index, array in enumerate(arrays)}

    def _batch(self, name: str, values: Array, dtype: np.dtype[Any], example: Shape) -> Array:
        """`values` itself when it fills the batch, else a kept buffer with zeros after it."""
        values = np.asarray(values, dtype)
        if values.shape[1:] != example:
            raise ValueError(f"one example of {name} must be {list(example)}, not {list(values.shape[1:])}")
        count = len(values)
        if count == self.manifest.batch:
            return values
        buffer = self._padded.get(name)
        if buffer is None:
            buffer = self._padded[name] = np.zeros((self.manifest.batch, *example), dtype)
        buffer[:count] = values
        # A NaN left there by an earlier batch would pass through the mask, since 0 × NaN is NaN.
        buffer[count:] = 0
        return buffer


def checked_inputs(manifest: Manifest, x: Array) -> Array:
    """`x` as it is. Raises ValueError where a model of integers gets others than its 0 … input_below - 1.

    The interpreters fail on an index above a table's end, and Keras's graph would take -1 for the last row.
    """
    x = np.asarray(x)
    if manifest.input_dtype == "int32" and x.size:
        if x.dtype.kind not in "iu":
            raise ValueError(f"x must be integers, not {x.dtype}")
        if int(x.min()) < 0 or int(x.max()) >= manifest.input_below:
            raise ValueError(f"x must lie between 0 and {manifest.input_below - 1}, not {x.min()} and {x.max()}")
    return x


def message_of(error: BaseException) -> str:
    """An interpreter's message without its line breaks."""
    return " ".join(str(error).split())
