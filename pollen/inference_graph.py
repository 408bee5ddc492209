"""An inference graph on the device interpreter: predictions of one published version, its weights being constants."""

import numpy as np

from pollen.bundle import Floats
from pollen.errors import InterpreterError
from pollen.interpreter import Array, Runtime, checked_inputs, message_of, open_graph
from pollen.manifest import Manifest


class InferenceGraph:
    """The function x -> y of a graph that `pollen.compiler.inference` made. Not for concurrent use.

    Raises InterpreterError when no interpreter can run it, or it isn't one of the model that `manifest` describes.
    """

    def __init__(self, graph: bytes, manifest: Manifest, runtime: Runtime = "auto") -> None:
        self._interpreter, self.runtime = open_graph(graph, manifest.model, runtime)
        try:
            # The interpreter's own inputs and outputs: a signature's runner costs as much as a small model.
            signatures = self._interpreter.get_signature_list()
            (x,), (y,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise InterpreterError(
                f"inference graph of model {manifest.model}: {message_of(error)}; make it again"
            ) from error
        expected = (1, *manifest.input_shape), np.dtype(manifest.input_dtype), (1, *manifest.output_shape)
        found = tuple(x["shape"].tolist()), np.dtype(x["dtype"]), tuple(y["shape"].tolist())
        if found != expected or list(signatures) != ["infer"] or y["dtype"] != np.float32:
            raise InterpreterError(
                f"inference graph of model {manifest.model}: it takes and gives {found}, its model {expected}; "
                "make it again"
            )
        self._x, self._y = x["index"], y["index"]
        self._dtype = expected[1]
        self._manifest = manifest

    def predict(self, x: Array) -> Floats:
        """The model's output, float32 [n, …], for any number of examples `x` [n, …]; a copy.

        Raises ValueError for an integer that the model has no row for, InterpreterError when the graph fails.
        """
        inputs = np.ascontiguousarray(checked_inputs(self._manifest, x), self._dtype)
        output = np.empty((len(inputs), *self._manifest.output_shape), np.float32)
        for index in range(len(inputs)):
            self._interpreter.set_tensor(self._x, inputs[index : index + 1])
            try:
                self._interpreter.invoke()
                output[index] = self._interpreter.get_tensor(self._y)[0]
            except (RuntimeError, ValueError, IndexError) as error:  # the last two: of another shape than it said
                raise InterpreterError(
                    f"inference graph of model {self._manifest.model}: it failed: {message_of(error)}; make it again"
                ) from error
        return output
