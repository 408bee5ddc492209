"""Residuals: updates against the device's last merged contribution, which the server needs no memory of."""

import sqlite3
from collections.abc import Callable

import numpy as np
import pytest

from pollen.bundle import Bundle, Floats
from tests.edge_client.fleet import Device, Server, decoded

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]


def contribution(device: Device) -> tuple[bytes, Floats] | None:
    """The task and the vector [P] that the device keeps as its last merged contribution."""
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        found = database.execute("SELECT task, vector FROM contribution").fetchall()
    return (found[0][0], np.frombuffer(found[0][1], np.float32)) if found else None


def residual(against: bytes) -> dict[str, str]:
    return {"upload": "residual", "against": against.hex()}


def merged(server: Server, device: Device, task: bytes) -> None:
    """Tell the device that its update for `task` was merged, and see that it knows."""
    server.receipt(server.update(task, 60))
    server.wait_for(lambda: (found := contribution(device)) and found[0] == task, 30, "the contribution")


def stored(device: Device) -> Floats:
    found = contribution(device)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("encoding", ["f32", "f16", "q8", "topk"])
def test_residuals_add_up_to_the_newest_model_the_device_trained(
    server: Server, device: Devices, bundles: Bundles, encoding: str
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"encoding": encoding})
    first = server.task(bundle, config=residual(b""))
    update = server.update(first, 60)
    assert update.against == b""
    total = bundle.weights + decoded(update, bundle)
    assert contribution(one) is None, "nothing is a contribution before it is merged"
    merged(server, one, first)
    np.testing.assert_allclose(stored(one), total, atol=1e-6)
    against = first
    for version in (1, 2, 3):  # far from the bundle's weights, so that it shows what was trained from
        weights = bundle.weights + np.float32(0.2 * version)
        server.publish_model(bundle, version, weights)
        task = server.task(bundle, version=version, config=residual(against))
        update = server.update(task, 60)
        assert (update.against, update.base) == (against, version)
        total += decoded(update, bundle)
        merged(server, one, task)
        np.testing.assert_allclose(stored(one), total, atol=1e-5)
        against = task
    if encoding != "topk":  # which catches up with a model that jumps only slowly
        assert np.linalg.norm(total - weights) < np.linalg.norm(total - bundle.weights)


def test_a_rejected_residual_leaves_the_contribution_and_an_unknown_one_starts_from_the_bundle(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"encoding": "q8"})
    first = server.task(bundle, config=residual(b""))
    merged(server, one, first)
    before = stored(one)
    second = server.task(bundle, config=residual(first))
    server.receipt(server.update(second, 60), outcome="rejected", reason="no")
    server.wait_for(lambda: "was rejected: no" in one.log(), 30, "the rejection")
    third = server.task(bundle, config=residual(second))
    assert server.update(third, 60).against == b"", "the server never had that contribution"
    server.receipt(server.update(third), outcome="rejected", reason="nor that")
    fourth = server.task(bundle, config=residual(first))
    update = server.update(fourth, 60)
    assert update.against == first
    np.testing.assert_array_equal(stored(one), before)
    merged(server, one, fourth)
    np.testing.assert_allclose(stored(one), before + decoded(update, bundle), atol=1e-6)


def test_a_kill_before_the_receipt_loses_no_contribution(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    first = server.task(bundle, config=residual(b""))
    update = server.update(first, 60)
    one.kill()
    two = device()
    merged(server, two, first)
    np.testing.assert_allclose(stored(two), bundle.weights + decoded(update, bundle), atol=1e-6)
    two.kill()
    device()
    assert server.update(server.task(bundle, config=residual(first)), 60).against == first


def test_a_task_that_overtakes_the_receipt_is_measured_against_what_was_merged(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    device()
    first = server.task(bundle, config=residual(b""))
    server.update(first, 60)
    assert server.update(server.task(bundle, config=residual(first)), 60).against == first


def test_a_residual_grows_on_after_a_restart_offline(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"encoding": "q8"})
    first = server.task(bundle, config=residual(b""))
    merged(server, one, first)
    before = stored(one)
    task = server.task(bundle, config={**residual(first), "skip_below_norm": 1e9, "skips": 1000})
    server.wait_for(lambda: "kept back, 2 of" in one.log(), 60, "two trainings")
    one.kill()
    two = device(upload={"encoding": "q8"})
    lives = two.log().count("kept back")
    server.wait_for(lambda: two.log().count("kept back") > lives, 60, "a third")
    server.receipt(server.update(server.task(bundle), 60))  # another task, which lets the first one go
    update = server.update(task, 60)
    assert update.against == first
    merged(server, two, task)
    np.testing.assert_allclose(stored(two), before + decoded(update, bundle), atol=1e-5)


def test_plain_tasks_know_nothing_of_contributions(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    update = server.update(server.task(bundle), 60)
    assert update.against is None
    server.receipt(update)
    server.wait_for(lambda: "merged: version 1" in one.log(), 30, "the receipt")
    assert contribution(one) is None
