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
) -> tuple[dict[str, Any], Floats | None]:
    """Encode `delta` + `residual` ([F] each); returns the wire tensors and what they miss, the next residual [F].

    Karimireddy et al., "Error feedback fixes SignSGD", 2019, algorithm 2: the sum of all that was sent differs from
    the sum of all deltas by the last residual only. None instead of a residual means all zero.
    """
    total = delta if residual is None else delta + residual
    if chosen == "f32":
        return dict(encoding.named(total, manifest.shared)), None
    # numpy.random costs 7 MB, so only the encodings that round load it.
    generator = np.random.default_rng(chance.getrandbits(128))
    wire = encoding.encode(total, manifest.shared, chosen, generator)
    sent = np.empty_like(total)
    encoding.decode_into(sent, wire, manifest.shared)
    return wire, total - sent
