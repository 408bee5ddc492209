"""The MLP written by hand in numpy; a CNN or GRU by hand would be a library of its own."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.training_models import CLASSES, MLP, RATE, batch_of


def stepper(model: str, size: int, _bundles: Path) -> Callable[[], object]:
    """One step."""
    if model != "mlp":
        raise ValueError(f"{model} isn't written in numpy")
    batch, rng = batch_of(model, size), np.random.default_rng(1)
    x, truth = batch.x, np.eye(CLASSES, dtype=np.float32)[batch.y]
    units, rate = (*MLP, CLASSES), np.float32(RATE)
    kernels = [rng.standard_normal((n, m), np.float32) / np.float32(np.sqrt(n)) for n, m in itertools.pairwise(units)]
    biases = [np.zeros(m, np.float32) for m in units[1:]]

    def step() -> None:
        outputs = [x]
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            outputs.append(np.maximum(outputs[-1] @ kernel + bias, 0))
        logits = outputs[-1] @ kernels[-1] + biases[-1]
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        delta = (exponents / exponents.sum(axis=1, keepdims=True) - truth) / np.float32(size)
        for index in reversed(range(len(kernels))):
            output, kernel = outputs[index], kernels[index]
            below = (delta @ kernel.T) * (output > 0) if index else None
            kernels[index] = kernel - rate * (output.T @ delta)
            biases[index] = biases[index] - rate * delta.sum(axis=0)
            delta = below

    return step
