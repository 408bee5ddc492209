"""Error feedback over many updates: nothing that was trained is lost, however little each update carries."""

import math
import random

import numpy as np
import pytest

from edge_client.network.error_feedback import compress
from pollen import encoding
from pollen.manifest import Tensor
from tests.pollen.manifests import manifest

TENSORS = (Tensor("layer/kernel", (20, 30)), Tensor("layer/bias", (30,)), Tensor("head/kernel", (30, 4)))
SIZE = sum(tensor.size for tensor in TENSORS)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_what_topk_leaves_behind_is_all_that_is_missing_and_stays_bounded(share: float) -> None:
    """Karimireddy et al., 2019, lemma 3: |residual|² <= 4 (1 - s) / s² times the largest |delta|²; s: the share."""
    chance, rng = random.Random(1), np.random.default_rng(2)
    model = manifest(*TENSORS)
    total, received = np.zeros(SIZE), np.zeros(SIZE)
    sent = np.empty(SIZE, np.float32)
    residual, norms, largest = None, [], 0.0
    one_way = rng.normal(0, 0.003, SIZE)
    for _ in range(600):
        delta = (one_way + rng.normal(0, 0.01, SIZE)).astype(np.float32)
        wire, residual = compress(delta, residual, model, "topk", chance, share=share)
        encoding.decode_into(sent, wire, TENSORS)
        assert np.count_nonzero(sent) == round(share * SIZE)
        assert residual is not None
        total += delta
        received += sent
        largest = max(largest, float(np.linalg.norm(delta)))
        norms.append(float(np.linalg.norm(residual)))
        np.testing.assert_allclose(received + residual, total, atol=2e-4)
    assert max(norms) <= 2 * math.sqrt(1 - share) / share * largest
    assert np.mean(norms[-100:]) <= 1.1 * np.mean(norms[-300:-200]), "it grows no more"
    wire, residual = compress(np.zeros(SIZE, np.float32), residual, model, "f32", chance)
    encoding.decode_into(sent, wire, TENSORS)
    assert residual is None
    np.testing.assert_allclose(received + sent, total, atol=2e-4)
