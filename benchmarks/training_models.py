"""The three models of `benchmarks.training_step`, described once for every library, and data for them."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RATE: Final = 0.01
CLASSES: Final = 10

# Dense layers of an MLP after its input; filters of two 3 x 3 convolutions, then a hidden layer; units of a GRU.
MLP: Final = (64, 128, 80)
CNN: Final = (16, 32, 28)
GRU: Final = 52
SHAPES: Final[dict[str, tuple[int, ...]]] = {"mlp": (64,), "cnn": (28, 28, 1), "gru": (20, 8)}
TITLES: Final = {
    "mlp": "MLP 64-128-80-10, 19,450 parameters",
    "cnn": "CNN 28 x 28, 49,022 parameters",
    "gru": "GRU (20, 8), 10,202 parameters",
}


@dataclass(frozen=True)
class Batch:
    """Examples `x` float32 [size, …] and their classes `y` int32 [size]."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int32]


def batch_of(model: str, size: int) -> Batch:
    """Random examples of a model."""
    rng = np.random.default_rng(0)
    return Batch(
        rng.standard_normal((size, *SHAPES[model]), np.float32), rng.integers(0, CLASSES, size).astype(np.int32)
    )
