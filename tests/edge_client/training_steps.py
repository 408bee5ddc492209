"""The device's side of the comparison with Keras: `training_steps.py FOLDER RUNTIME`, in a process without TensorFlow.

Trains each FOLDER/<case>.bundle on the batches in FOLDER/<data>.npz (x, y [steps, batch, …], u0, u1, …), where
FOLDER/cases.txt has one line "case data" for each, and writes FOLDER/<case>.<runtime>.npz: the weights at the end,
the loss and the gradient of each step, and the first batch's prediction with the first weights. Prints the
interpreter and its version.
"""

import sys
from pathlib import Path

import numpy as np

from edge_client import optimizers
from pollen import interpreter
from pollen.bundle import Bundle


def train(folder: Path, case: str, data: str, runtime: interpreter.Runtime) -> str:
    bundle = Bundle.read(folder / f"{case}.bundle")
    graph = interpreter.load(bundle, runtime)
    with np.load(folder / f"{data}.npz") as arrays:
        batches = dict(arrays)
    noises = [batches[f"u{index}"] for index in range(len(bundle.manifest.noise))]
    optimizer = optimizers.make(bundle.manifest.optimizer, bundle.manifest.parameters)
    w = bundle.weights.copy()
    prediction = graph.predict(w, batches["x"][0])
    losses, gradients = [], []
    for index, (x, y) in enumerate(zip(batches["x"], batches["y"], strict=True)):
        step = graph.gradient(w, x, y, noise=[noise[index] for noise in noises])
        optimizer.step(w, step.gradient)
        losses.append(step.loss)
        gradients.append(step.gradient)
    np.savez(folder / f"{case}.{runtime}.npz", weights=w, losses=losses, gradients=gradients, prediction=prediction)
    return graph.runtime


def main() -> None:
    folder, runtime = Path(sys.argv[1]), sys.argv[2]
    assert runtime in ("litert", "tflite")
    versions = {train(folder, *line.split(), runtime) for line in (folder / "cases.txt").read_text().splitlines()}
    assert not {"tensorflow", "keras", "flwr", "grpc"} & set(sys.modules)
    print(*versions)


if __name__ == "__main__":
    main()
