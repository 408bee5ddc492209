"""What inference graphs answer, in a process without TensorFlow: `inference_outputs.py RUNTIME FOLDER`.

For each <kind>.tflite in the folder, a graph of model.bundle: predicts x of examples.npz into <kind>.<runtime>.npy.
"""

import sys
from pathlib import Path

import numpy as np

from pollen import examples
from pollen.bundle import Bundle
from pollen.inference_graph import InferenceGraph


def main(runtime: str, folder: Path) -> None:
    manifest = Bundle.read(folder / "model.bundle").manifest
    x = examples.read(folder / "examples.npz", manifest).x
    assert runtime in ("litert", "tflite")
    for path in folder.glob("*.tflite"):
        graph = InferenceGraph(path.read_bytes(), manifest, runtime)
        np.save(folder / f"{path.stem}.{runtime}.npy", graph.predict(x))
    assert not {"tensorflow", "keras"} & set(sys.modules)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
