"""A device's training step: the bundle's graph in an interpreter, the optimizer in numpy."""

import importlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.training_models import batch_of
from edge_client.training import optimizers
from pollen.bundle import Bundle
from pollen.interpreter import load

try:
    importlib.import_module("ai_edge_litert.interpreter")
except ImportError:
    importlib.import_module("tflite_runtime.interpreter")


def stepper(model: str, size: int, bundles: Path) -> Callable[[], object]:
    """One step, with the interpreter that this Python has."""
    bundle = Bundle.read(bundles / f"{model}-{size}.bundle")
    graph, batch = load(bundle), batch_of(model, size)
    w, optimizer = bundle.weights.copy(), optimizers.make(bundle.manifest.optimizer, bundle.manifest)

    def step() -> None:
        optimizer.step(w, graph.gradient(w, batch.x, batch.y).gradient)

    return step
