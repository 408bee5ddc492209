"""Clipping a flat gradient in place, by Keras 3's formulas.

With limit c: by value g ← min(max(g, -c), c); by norm, each tensor for itself, g ← g c / max(‖g‖, c); by global norm
the same with the norm of all tensors together (Pascanu et al. 2013, On the difficulty of training recurrent neural
networks, algorithm 1).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pollen.bundle import Floats
from pollen.objective import CLIPPING, Optimizer


class Clipping:
    """What `optimizer` clips a gradient [P] by, made of tensors of `sizes` values; nothing where it doesn't say."""

    def __init__(self, optimizer: Optimizer, sizes: Sequence[int]) -> None:
        self._kind = next((name for name in CLIPPING if name in optimizer.settings), None)
        self._limit = np.float32(optimizer.settings.get(self._kind or "", 0.0))
        ends = np.cumsum([0, *sizes]).tolist()
        self._parts = [slice(start, end) for start, end in pairwise(ends)]
        self._squares = np.empty(sum(sizes) if self._kind in ("clipnorm", "global_clipnorm") else 0, np.float32)

    def apply(self, g: Floats) -> None:
        """Clip `g` [P] in place."""
        limit = self._limit
        if self._kind is None:
            return
        if self._kind == "clipvalue":
            np.clip(g, -limit, limit, out=g)
            return
        squares = np.multiply(g, g, out=self._squares)
        sums = [squares[part].sum() for part in self._parts]
        if self._kind == "clipnorm":
            for part, total in zip(self._parts, sums, strict=True):
                g[part] *= limit
                g[part] /= max(np.sqrt(total), limit)
            return
        norm = np.sqrt(np.sum(sums, dtype=np.float32))
        # The difference is 0, or NaN for a norm that isn't finite: Keras spoils such a gradient as a whole.
        g *= limit / max(norm, limit) + (norm - norm)
