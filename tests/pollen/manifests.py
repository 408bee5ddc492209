"""Manifests for tests that don't compile a model."""

from dataclasses import replace
from typing import Any

from pollen.manifest import Loss, Manifest, Optimizer, Tensor

_PLAIN = Manifest(
    model="m",
    weights=(Tensor("w", (1,)),),
    state=(),
    frozen=(),
    personal=(),
    input_shape=(2,),
    input_dtype="float32",
    input_below=0,
    output_shape=(1,),
    label_shape=(1,),
    label_dtype="float32",
    batch=4,
    noise=(),
    loss=Loss("mse", from_logits=False),
    optimizer=Optimizer("sgd", 0.1, {}),
    keras_version="3",
    tensorflow_version="2",
    architecture="",
)


def manifest(*weights: Tensor, **changes: Any) -> Manifest:
    """A model [2] -> [1] of these trained tensors, by default one of one value; `changes`: other fields."""
    return replace(_PLAIN, weights=weights or _PLAIN.weights, **changes)
