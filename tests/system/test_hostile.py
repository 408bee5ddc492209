"""Devices with valid credentials that misbehave: each is told why, and the others go on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pollen.bundle import Bundle
from pollen.messages import Task
from tests.system.hostile import HostileDevice, update, with_tensor, with_version
from tests.system.whole import FLEET, UPDATE_BYTES, Whole

HONEST = ("pi-1", "pi-2")
NOT_AUTHORIZED = 0x87  # MQTT 5, section 3.4.2.1

Attack = Callable[[Bundle, Task], bytes]


def poisoned(bundle: Bundle) -> np.ndarray:
    tensor = np.zeros(bundle.manifest.shared[0].shape, np.float32)
    tensor.flat[3] = np.nan
    return tensor


# One device an attack: after a rejected update the server lets a device wait.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "wrong-shape": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, np.zeros((2, 2), np.float32))),
        "has shape (2, 2), the model has",
    ),
    "nan": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, poisoned(bundle))),
        "not finite",
    ),
    "unknown-base": (lambda bundle, task: update(bundle, task, base=10**9), "base version 1000000000 was never issued"),
    "no-samples": (lambda bundle, task: update(bundle, task, samples=0), "n = 0 samples"),
    "unknown-task": (lambda bundle, task: update(bundle, task, task=b"made up".ljust(16)), "unknown task"),
    "oversize": (
        lambda _bundle, _task: bytes(UPDATE_BYTES + 1),
        f"payload of {UPDATE_BYTES + 1} bytes is over the limit",
    ),
    "no-cbor": (lambda _bundle, _task: b"\xff\x00 this is no CBOR", "not valid CBOR"),
    "deep": (lambda _bundle, _task: b"\x81" * 50_000 + b"\x00", "nested deeper"),
    "truncated": (lambda bundle, task: update(bundle, task)[:-3], "not valid CBOR"),
    "array-as-version": (lambda _bundle, _task: with_version(np.zeros(2, np.float32)), "message version"),
    "long-version": (lambda _bundle, _task: with_version("9" * 90_000), "message version"),
    "long-names": (
        lambda bundle, task: update(bundle, task, delta={"x" * 40_000: 0, "y" * 40_000: 1, "z": 2}),
        "3 tensors, the model has 4",
    ),
}


@pytest.mark.timeout(120)
def test_hostile_updates_are_rejected_with_the_reason_and_nothing_stops(
    whole: Callable[..., Whole], bundle_file: Path
) -> None:
    bundle = Bundle.read(bundle_file)
    running = whole(devices=HONEST, others=tuple(ATTACKS))
    running.wait_for_merges(4)
    for name, (attack, reason) in ATTACKS.items():
        with HostileDevice(name, running.broker.port, FLEET) as hostile:
            hostile.publish("update", attack(bundle, hostile.task()))
            receipt = hostile.receipt()
        assert receipt.outcome == "rejected", name
        assert reason in receipt.reason, name
        running.check_alive()
    running.wait_for_merges(10)
    rejected = {line["device"]: line["reason"] for line in running.history("rejection")}
    assert rejected.keys() == ATTACKS.keys()
    assert {merge["device"] for merge in running.history()} == set(HONEST)
    print(f"{len(ATTACKS)} attacks rejected, {running.version()} merges of honest devices")


@pytest.mark.timeout(90)
def test_publishing_as_another_device_is_refused_by_the_broker(whole: Callable[..., Whole], bundle_file: Path) -> None:
    bundle = Bundle.read(bundle_file)
    running = whole(devices=HONEST, others=("evil",))
    running.wait_for_merges(4)
    with HostileDevice("evil", running.broker.port, FLEET) as evil:
        task = evil.task()
        for leaf in ("update", "result", "state"):
            for payload in (update(bundle, task), b"\xff"):
                answer = evil.publish(leaf, payload, device="pi-1")
                assert answer.value == NOT_AUTHORIZED, leaf
        # Its own update comes after those, by the same way: when it is answered, they would have been.
        evil.publish("update", update(bundle, task))
        assert evil.receipt().outcome == "merged"
    running.wait_for_merges(10)
    assert running.history("rejection") == []
    devices = [merge["device"] for merge in running.history()]
    assert devices.count("evil") == 1
    assert set(devices) == {*HONEST, "evil"}
