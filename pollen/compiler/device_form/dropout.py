"""Dropout with the host's random numbers, so that runs repeat."""

from typing import Any, Final

import keras
import tensorflow as tf

from pollen.bundle import Shape
from pollen.errors import CompileError

_STEEP: Final = 1e30


class Uniform:
    """Where a layer finds its uniform numbers while the graph is traced."""

    def __init__(self) -> None:
        self.values: Any = None


class HostNoiseDropout(keras.layers.Layer):
    """Keras's Dropout with the uniform numbers [B, …] in [0, 1) given from outside: dropped where u < rate."""

    def __init__(self, rate: float, name: str) -> None:
        super().__init__(name=name)
        self.rate = rate
        self.uniform = Uniform()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`inputs` with dropped elements zero and the others divided by 1 - rate; unchanged at inference."""
        if not training:
            return inputs
        # 1 where u >= rate, by clipping: comparisons and selects are slow on tflite-runtime.
        kept = 1.0 - tf.clip_by_value((self.rate - self.uniform.values) * _STEEP, 0.0, 1.0)
        return inputs * (kept * (1.0 / (1.0 - self.rate)))


def noise_shapes(layers: list[HostNoiseDropout], batch: int) -> tuple[Shape, ...]:
    """The shape of each layer's uniform numbers, the batch axis included."""
    return tuple((batch, *layer.input.shape[1:]) for layer in layers)


def check_used_once(model: Any) -> None:
    """Raise CompileError where a Dropout layer is used twice: each use needs numbers of its own."""
    for entry in model.get_config()["layers"]:
        if entry["class_name"] == "Dropout" and len(entry.get("inbound_nodes", ())) > 1:
            raise CompileError(
                f"layer {entry['config']['name']!r} (Dropout) can't be compiled: it is used more than once; "
                "use a Dropout of its own at each place"
            )
