"""Which of a model's values are federated, and which stay on the device: from weights and state and back."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from pollen.manifest import Manifest

Floats = npt.NDArray[np.float32]


class Sharing:
    """How weights [P] and state [S] fall into shared values [F] and personal ones [Q]; F + Q = P + S.

    Both keep the order weights, state, each in the manifest's order. Personal layers: Arivazhagan et al. 2019,
    Federated Learning with Personalization Layers (FedPer); with BatchNormalization personal, Li et al. 2021, FedBN.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._parameters: Final = manifest.parameters
        self._all_shared: Final = not manifest.personal
        self._runs: Final = tuple(_runs(manifest))
        self.shared_size: Final = manifest.shared_size
        self.personal_size: Final = manifest.parameters + manifest.state_size - manifest.shared_size

    def split(self, weights: Floats, state: Floats) -> tuple[Floats, Floats]:
        """(shared [F], personal [Q]), new arrays."""
        values = np.concatenate([weights, state])
        if self._all_shared:
            return values, np.zeros(0, np.float32)
        parts: tuple[list[Floats], list[Floats]] = ([], [])
        for personal, start, end in self._runs:
            parts[personal].append(values[start:end])
        return np.concatenate(parts[False]), np.concatenate(parts[True])

    def join(self, shared: Floats, personal: Floats) -> tuple[Floats, Floats]:
        """(weights [P], state [S]); views of `shared` where nothing is personal. Raises ValueError for other sizes."""
        if shared.shape != (self.shared_size,) or personal.shape != (self.personal_size,):
            raise ValueError(
                f"{shared.shape} shared and {personal.shape} personal values, "
                f"the model has [{self.shared_size}] and [{self.personal_size}]"
            )
        if self._all_shared:
            return shared[: self._parameters], shared[self._parameters :]
        values = np.empty(self.shared_size + self.personal_size, np.float32)
        taken = [0, 0]
        for is_personal, start, end in self._runs:
            source, begin = (personal if is_personal else shared), taken[is_personal]
            values[start:end] = source[begin : begin + end - start]
            taken[is_personal] += end - start
        return values[: self._parameters], values[self._parameters :]


def _runs(manifest: Manifest) -> Iterator[tuple[bool, int, int]]:
    """(whether it is personal, start, end) of each tensor in the concatenation of weights and state."""
    start = 0
    for tensor in manifest.weights + manifest.state:
        yield tensor.layer in manifest.personal, start, start + tensor.size
        start += tensor.size
