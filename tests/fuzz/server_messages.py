"""What a server sends, valid: the seeds that fuzzing starts from."""

import hashlib

import numpy as np

from pollen import encoding, messages
from pollen.bundle import Bundle
from pollen.manifest import Manifest, Tensor
from pollen.messages import Inference, Receipt, Snapshot, Task
from tests.pollen.manifests import manifest

LIMIT = 64 * 1024
MANIFEST: Manifest = manifest(Tensor("body/kernel", (2, 3)), Tensor("body/bias", (3,)))


def bundle() -> Bundle:
    empty = np.zeros(0, np.float32)
    return Bundle(MANIFEST, b"graph" * 9, np.ones(MANIFEST.parameters, np.float32), empty, empty, b"s" * 72)


def snapshot() -> bytes:
    values = np.arange(MANIFEST.shared_size, dtype=np.float32)
    digest = hashlib.sha256(values.tobytes()).digest()
    return messages.encode(Snapshot("m", 7, digest, encoding.named(values, MANIFEST.shared), b"s" * 72))


def task() -> bytes:
    config = {"epochs": 3, "learning_rate": 0.1, "encoding": "q8", "upload": "residual", "against": ""}
    return messages.encode(Task(b"t" * 16, "train", "m", 7, b"d" * 32, config))


def receipt() -> bytes:
    return messages.encode(Receipt(b"t" * 16, 4, "rejected", 8, 0.5, 2, "why"))


def inference() -> bytes:
    graph = b"TFL3" * 8
    digest = hashlib.sha256(graph).digest()
    return messages.encode(Inference("m", 7, "int8", b"d" * 32, digest, graph, {"loss": 0.5}, b"s" * 72))
