"""A model that is nothing but weights, for benchmarks in which nobody runs its graph."""

from typing import Final

import numpy as np

from pollen.bundle import Bundle, Loss, Manifest, Optimizer, Tensor

TENSORS: Final = 6


def bundle_of(kilobytes: int) -> Bundle:
    """A model of `kilobytes` kB (1000 bytes) of float32 weights in six tensors."""
    each = kilobytes * 1000 // 4 // TENSORS
    manifest = Manifest(
        model="bench",
        weights=tuple(Tensor(f"t{i}", (each,)) for i in range(TENSORS)),
        state=(),
        frozen=(),
        personal=(),
        input_shape=(1,),
        input_dtype="float32",
        input_below=0,
        output_shape=(1,),
        label_shape=(1,),
        label_dtype="float32",
        batch=1,
        noise=(),
        loss=Loss("mse", False),
        optimizer=Optimizer("sgd", 0.1, {}),
        keras_version="-",
        tensorflow_version="-",
        architecture="",
    )
    none = np.zeros(0, np.float32)
    return Bundle(manifest, b"-", np.zeros(each * TENSORS, np.float32), none, none)
