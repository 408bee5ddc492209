"""Lossy encodings with error feedback: what one update couldn't carry goes along with the next."""

import random
from typing import Any

import numpy as np

from pollen import encoding
from pollen.bundle import Floats
from pollen.manifest import Manifest


def compress(
    delta: Floats,
    residual: Floats | None,
    manifest: Manifest,
    chosen: encoding.Encoding,
    chance: random.Random,
    *,
    share: float = encoding.TOPK_SHARE,
) -> tuple[dict[str, Any], Floats | None]:
    """Encode `delta` + `residual` ([F] each); returns the wire tensors and what they miss, the next residual [F].

    Karimireddy et al., "Error feedback fixes SignSGD", 2019, algorithm 2, and the memory of Stich, Cordonnier & Jaggi,
    2018, algorithm 1: the sum of all that was sent differs from the sum of all deltas by the last residual only. None
    instead of a residual means all zero. `share`: see `encoding.encode`.
    """
    total = delta if residual is None else delta + residual
    if chosen == "f32":
        return dict(encoding.named(total, manifest.shared)), None
    if chosen == "topk":
        # A model's moving averages only make sense together, and they are few.
        trained = [tensor for tensor in manifest.shared if tensor in manifest.weights]
        cut = encoding.parameters(trained)
        wire = encoding.encode(total[:cut], trained, chosen, chance, share)
        wire |= encoding.encode(total[cut:], manifest.shared[len(trained) :], "q8", chance)
    else:
        wire = encoding.encode(total, manifest.shared, chosen, chance)
    sent = np.empty_like(total)
    encoding.decode_into(sent, wire, manifest.shared)
    return wire, total - sent
