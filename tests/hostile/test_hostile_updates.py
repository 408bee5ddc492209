"""Devices with valid certificates that misbehave: each is told why, each reason is counted, and the others go on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pollen import messages
from pollen.bundle import Bundle
from pollen.messages import Task, Vitals
from tests.hostile.hostile_device import HostileDevice, update, with_tensor, with_version
from tests.hostile.secured_fleet import FLEET, HONEST, SecuredFleet
from tests.system.whole import UPDATE_BYTES

NOT_AUTHORIZED = 0x87  # MQTT 5, section 3.4.2.1

Attack = Callable[[Bundle, Task], bytes]


def poisoned(bundle: Bundle, value: float) -> np.ndarray:
    tensor = np.zeros(bundle.manifest.shared[0].shape, np.float32)
    tensor.flat[3] = value
    return tensor


# One device each, since after a rejected update the server lets it wait: what it sends, is told, and is counted as.
ATTACKS: dict[str, tuple[Attack, str, str]] = {
    "wrong-shape": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, np.zeros((2, 2), np.float32))),
        "has shape (2, 2), the model has",
        "shapes",
    ),
    "wrong-type": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, np.zeros((2, 2), np.float64))),
        "expected a float32",
        "dtype",
    ),
    "text-for-numbers": (lambda bundle, task: update(bundle, task, samples="many"), "whole number", "unreadable"),
    "nan": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, poisoned(bundle, np.nan))),
        "not finite",
        "not-finite",
    ),
    "infinite": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, poisoned(bundle, np.inf))),
        "not finite",
        "not-finite",
    ),
    "enormous": (
        lambda bundle, task: update(bundle, task, delta=with_tensor(bundle, poisoned(bundle, 1e30))),
        "",
        "magnitude",
    ),
    "unknown-base": (
        lambda bundle, task: update(bundle, task, base=10**9),
        "base version 1000000000 was never issued",
        "base",
    ),
    "no-samples": (lambda bundle, task: update(bundle, task, samples=0), "n = 0 samples", "samples"),
    "claims": (lambda bundle, task: update(bundle, task, samples=10**9), "n = 1000000000 samples", "samples"),
    "unknown-task": (
        lambda bundle, task: update(bundle, task, task=b"made up".ljust(16)),
        "unknown task",
        "unknown-task",
    ),
    "oversize": (
        lambda _bundle, _task: bytes(UPDATE_BYTES + 1),
        f"payload of {UPDATE_BYTES + 1} bytes is over the limit",
        "size",
    ),
    "no-cbor": (lambda _bundle, _task: b"\xff\x00 this is no CBOR", "not valid CBOR", "unreadable"),
    "deep": (lambda _bundle, _task: b"\x81" * 50_000 + b"\x00", "nested deeper", "unreadable"),
    "truncated": (lambda bundle, task: update(bundle, task)[:-3], "not valid CBOR", "unreadable"),
    "array-as-version": (lambda _bundle, _task: with_version(np.zeros(2, np.float32)), "message version", "unreadable"),
    "long-version": (lambda _bundle, _task: with_version("9" * 90_000), "message version", "unreadable"),
    "long-names": (
        lambda bundle, task: update(bundle, task, delta={"x" * 40_000: 0, "y" * 40_000: 1, "z": 2}),
        "3 tensors, the model has 4",
        "names",
    ),
}


@pytest.fixture(scope="module")
def bundle(bundle_file: Path) -> Bundle:
    return Bundle.read(bundle_file)


def connect(fleet: SecuredFleet, name: str) -> HostileDevice:
    if not fleet.pair(name)[0].exists():
        fleet.authority.issue(name, "device")
    return HostileDevice(name, fleet.broker.port, FLEET, fleet.context(name))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_update_is_refused_with_a_counted_reason(fleet: SecuredFleet, bundle: Bundle, name: str) -> None:
    attack, reason, kind = ATTACKS[name]
    before = fleet.metric("server", "pollen_server_rejections_total", kind=kind)
    merged = fleet.merges()
    with connect(fleet, name) as hostile:
        hostile.publish("update", attack(bundle, hostile.task()))
        receipt = hostile.receipt()
    assert (receipt.outcome, reason in receipt.reason) == ("rejected", True), receipt
    told = [(line["device"], line["kind"]) for line in fleet.history("rejection")]
    assert told.count((name, kind)) == 1
    fleet.wait_for_metric("server", "pollen_server_rejections_total", before + 1, kind=kind)
    assert fleet.merges()[name] == 0
    fleet.wait_for(lambda: fleet.merges()["pi-1"] > merged["pi-1"], 30, "an honest device goes on")


def test_a_replayed_update_is_merged_once(fleet: SecuredFleet, bundle: Bundle) -> None:
    """Its own, again and again, and one that another device sent."""
    with connect(fleet, "replays") as hostile, connect(fleet, "copies") as copier:
        payload = update(bundle, hostile.task())
        hostile.publish("update", payload)
        first = hostile.receipt()
        assert first.outcome == "merged"
        hostile.task()
        for _ in range(5):
            hostile.publish("update", payload)
            assert hostile.receipt() == first
        copier.task()
        copier.publish("update", payload)
        told = copier.receipt()
    assert (told.outcome, "unknown task" in told.reason) == ("rejected", True)
    assert (fleet.merges()["replays"], fleet.merges()["copies"]) == (1, 0)


def test_a_task_that_is_answered_takes_no_second_update(fleet: SecuredFleet, bundle: Bundle) -> None:
    with connect(fleet, "rewrites") as hostile:
        task = hostile.task()
        hostile.publish("update", update(bundle, task))
        assert hostile.receipt().outcome == "merged"
        hostile.publish("update", update(bundle, task, seq=2))
        assert hostile.receipt().outcome == "duplicate"
    assert fleet.merges()["rewrites"] == 1


def test_publishing_as_another_device_is_refused_by_the_broker(fleet: SecuredFleet, bundle: Bundle) -> None:
    with connect(fleet, "spoofs") as evil:
        task = evil.task()
        for leaf in ("update", "result", "state", "vitals"):
            for payload in (update(bundle, task), b"\xff"):
                answer = evil.publish(leaf, payload, device="pi-1")
                assert answer.value == NOT_AUTHORIZED, leaf
        # Its own update comes after those, by the same way: when it is answered, they would have been.
        evil.publish("update", update(bundle, task))
        assert evil.receipt().outcome == "merged"
    assert "pi-1" not in {line["device"] for line in fleet.history("rejection")}


def test_a_device_hears_nothing_of_the_others(fleet: SecuredFleet) -> None:
    with connect(fleet, "listens") as evil:
        for topic in ("#", "pollen/1/garden/d/+/update", "$share/gateways/pollen/1/garden/d/+/update", "$SYS/#"):
            evil.subscribe(topic)
        fleet.wait_for_honest_merges(2)
        # The own birth and models are what # rightly gives.
        assert set(evil.others()) <= {"state", "head", "weights", "bundle", "infer"}


def test_hostile_vitals_and_births_are_ignored_and_the_device_is_not(fleet: SecuredFleet, bundle: Bundle) -> None:
    with connect(fleet, "babbles") as hostile:
        task = hostile.task()
        for payload in (b"\xff", b"\x81" * 60_000, bytes(10**6), messages.encode(Vitals({"x" * 64: 1.0}))):
            hostile.publish("vitals", payload)
            hostile.publish("state", payload)
        hostile.publish("update", update(bundle, task))
        assert hostile.receipt().outcome == "merged"
    fleet.wait_for_honest_merges(2)


def test_the_books_are_in_order_after_all_of_it(fleet: SecuredFleet) -> None:
    fleet.wait_for_honest_merges(3)
    versions = [line["version"] for line in fleet.history("merge")]
    assert versions == sorted(set(versions))
    assert not {line["device"] for line in fleet.history("rejection")} & set(HONEST)
