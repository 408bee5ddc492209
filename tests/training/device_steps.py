"""The device's side of the comparison with Keras, in a process without TensorFlow: `device_steps.py RUNTIME`.

For each folder named on standard input: trains its model.bundle on its batches.npz (x, y [steps, batch, …], u0, u1, …
for dropout, sample_weight [steps, batch] where there is one), and writes <runtime>.npz: the weights and state at the
end, the loss and the gradient of each step, and the first batch's prediction with the first weights. Answers with
the interpreter and its version, or "error: …".
"""

import sys
from pathlib import Path

import numpy as np

from edge_client.training import optimizers
from pollen import interpreter
from pollen.bundle import Bundle


def train(folder: Path, runtime: interpreter.Runtime) -> str:
    bundle = Bundle.read(folder / "model.bundle")
    graph = interpreter.load(bundle, runtime)
    with np.load(folder / "batches.npz") as arrays:
        batches = dict(arrays)
    noises = [batches[f"u{index}"] for index in range(len(bundle.manifest.noise))]
    weighted = batches.get("sample_weight")
    optimizer = optimizers.make(bundle.manifest.optimizer, bundle.manifest)
    w, state = bundle.weights.copy(), bundle.state.copy()
    prediction = graph.predict(w, batches["x"][0], state)
    losses, gradients = [], []
    for index, (x, y) in enumerate(zip(batches["x"], batches["y"], strict=True)):
        step = graph.gradient(
            w,
            x,
            y,
            state,
            [noise[index] for noise in noises],
            sample_weight=None if weighted is None else weighted[index],
        )
        optimizer.step(w, step.gradient)
        state = step.state
        losses.append(step.loss)
        gradients.append(step.gradient)
    np.savez(
        folder / f"{runtime}.npz", weights=w, state=state, losses=losses, gradients=gradients, prediction=prediction
    )
    return graph.runtime


def main() -> None:
    runtime = sys.argv[1]
    assert runtime in ("litert", "tflite")
    for line in sys.stdin:
        try:
            answer = train(Path(line.strip()), runtime)
        except Exception as error:  # noqa: BLE001 - the test that asked shows it
            answer = f"error: {type(error).__name__}: {' '.join(str(error).split())}"
        assert not {"tensorflow", "keras", "flwr", "grpc"} & set(sys.modules)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
