"""A real device whose broker brings it thousands of hostile payloads: it lives, doesn't grow, and goes on working."""

import hashlib
import random
import struct
from collections.abc import Callable

import psutil
import pytest

from pollen import encoding, messages, topics
from pollen.bundle import Bundle
from pollen.messages import Inference, Receipt, Snapshot, Task
from tests.edge_client.fleet import FLEET, Device, Server

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]
MODEL = {leaf: topics.model(FLEET, "telemetry", leaf) for leaf in ("weights", "bundle", "infer")}
PATIENCE_S = 60.0
ROUND = 1000
ROUNDS = 3
GROWTH_BYTES = 3 * 2**20  # from the second round to the last; the first fills what is kept for ever
NUMBERS = [b"\xf9\x7e\x00", b"\xf9\x7c\x00", b"\x1b" + b"\xff" * 8, b"\x3b" + b"\xff" * 8, b"\xf6", b"\x40", b"\xa0"]


def seeds(bundle: Bundle) -> dict[str, bytes]:
    """A valid message for each topic that a device reads."""
    values, name = bundle.shared, bundle.manifest.model
    digest = hashlib.sha256(values.tobytes()).digest()
    graph = bundle.graph
    return {
        "task": messages.encode(Task(b"t" * 16, "train", name, 7, bundle.digest, {"epochs": 2, "upload": "residual"})),
        "receipt": messages.encode(Receipt(b"t" * 16, 4, "rejected", 8, 0.5, 2, "why")),
        "weights": messages.encode(Snapshot(name, 7, digest, encoding.named(values, bundle.manifest.shared))),
        "bundle": bundle.to_bytes(),
        "infer": messages.encode(
            Inference(name, 7, "int8", bundle.digest, hashlib.sha256(graph).digest(), graph, {"loss": 0.5})
        ),
    }


def hostile(seed: bytes, chance: random.Random) -> bytes:
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.choice([0, 1, 100, 10_000]))
        case 1:
            return chance.choice([b"\x81", b"\xa1\x61v", b"\xd8\x28"]) * 20_000
        case 2:
            return b"\xa1\x61v\x01" + bytes(70_000)
        case 3:
            return seed[: chance.randrange(len(seed))]
        case 4:
            at = chance.randrange(len(seed))
            return seed[:at] + chance.choice(NUMBERS) + seed[at + 1 :]
        case 5:
            at = chance.randrange(max(1, len(seed) - 4))
            return seed[:at] + struct.pack(">I", chance.choice([2**31, 2**32 - 1, 0])) + seed[at + 4 :]
        case 6:
            return chance.choice([b"\x9b", b"\xbb", b"\x5b", b"\x7b"]) + b"\x7f" + b"\xff" * 7 + seed
        case _:
            flipped = bytearray(seed)
            for _ in range(chance.randrange(1, 9)):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return bytes(flipped)


@pytest.mark.timeout(600)
def test_hostile_payloads_on_every_topic_neither_end_nor_bloat_it(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    good = bundles("forecast")
    server.publish_model(good, 3)
    one = device(logging={"level": "error"}, inference={"graph": "always"}, training={"fetch_s": 0.2})
    chance, valid = random.Random(5), seeds(good)
    process, sizes = psutil.Process(one.pid), []
    for _ in range(ROUNDS):
        for number in range(ROUND):
            leaf = chance.choice(list(valid))
            topic = MODEL.get(leaf) or topics.device(FLEET, "pi-1", leaf)  # type: ignore[arg-type]
            server.publish_raw(topic, hostile(valid[leaf], chance), retain=leaf in MODEL)
            if number % 50 == 0:  # a task that makes it fetch what is there now
                other = chance.choice([good.digest, chance.randbytes(32)])
                task = Task(chance.randbytes(16), chance.choice(["train", "evaluate"]), "telemetry", 9, other, {})
                server.publish_raw(topics.device(FLEET, "pi-1", "task"), messages.encode(task))
        assert works(server, good)
        sizes.append(process.memory_info().rss)
        print([size // 2**10 for size in sizes], "KiB")
    assert one.process.poll() is None, one.log()
    assert "Traceback" not in one.log()
    assert sizes[-1] - sizes[1] < GROWTH_BYTES, [size // 2**10 for size in sizes]


def works(server: Server, bundle: Bundle) -> bool:
    """Whether a good task is done as ever."""
    server.publish_model(bundle, 3)
    server.publish_raw(MODEL["infer"], b"", retain=True)
    task = server.task(bundle, version=3, config={"min_samples": 1})
    update = server.update(task, PATIENCE_S)
    server.receipt(update)
    return update.base == 3
