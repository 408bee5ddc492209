"""Personal layers and moving averages on whole devices: what is sent, what stays, and what a kill leaves."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edge_client.model.personal_layers import Personal, find, layout_of
from edge_client.network.outbox import Outbox
from pollen.bundle import Bundle
from pollen.sharing import Sharing
from tests.edge_client.fleet import LIMIT, Device, Server, decoded

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]

HUGE = 1e9  # a norm that no update has


def kept(device: Device, bundle: Bundle) -> Personal | None:
    """What the device has stored of its personal layers."""
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        return find(database, bundle.digest, layout_of(bundle.manifest))


def stored(device: Device, bundle: Bundle) -> Personal:
    found = kept(device, bundle)
    assert found is not None
    return found


def with_personal(bundle: Bundle, *personal: str) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, personal=personal))


def sent(server: Server) -> bytes:
    """All that the device has published."""
    return b"\0\0\0\0".join(payload for _, _, payload in list(server.received))


def test_an_update_has_the_shared_tensors_and_nothing_personal_is_ever_sent(
    server: Server, device: Devices, bundles: Bundles, device_python: str
) -> None:
    bundle = bundles("personal")
    server.publish_model(bundle, 0)
    one = device(python=device_python, upload={"encoding": "f32"})
    _, personal = Sharing(bundle.manifest).split(bundle.weights, bundle.state)
    steps = 0
    for version in (1, 2):
        update = server.update(server.task(bundle, version=version - 1), 60)
        assert set(update.delta) == {tensor.name for tensor in bundle.manifest.shared}
        assert "norm/moving_variance" in update.delta
        assert not any(name.startswith("head/") for name in update.delta)
        now = stored(one, bundle)
        steps += update.steps
        assert now.steps == steps
        moved = now.values - personal
        assert np.count_nonzero(moved) == len(moved), "personal layers are trained too"
        everything = sent(server)
        assert np.float32(decoded(update, bundle)[0]).tobytes() in everything, "the search finds what is sent"
        for values in (now.values, moved, personal[personal != 0]):
            assert not [value for value in values if value.tobytes() in everything]
        assert b"head/" not in everything
        personal = now.values
        shared = bundle.shared + np.float32(0.01 * version)
        server.publish_model(bundle, version, shared)
        server.receipt(update)
    server.result(server.task(bundle, version=2, kind="evaluate"), 60)
    np.testing.assert_array_equal(stored(one, bundle).values, personal)  # a snapshot leaves them alone
    assert b"head/" not in sent(server)


def test_a_device_evaluates_the_personalised_model(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = with_personal(bundles("personal"), "norm", "head")
    server.publish_model(bundle, 0)  # and never a newer one: what gets better is the device's own
    one = device()
    still = {"learning_rate": 1e-12, "max_steps": 1, "min_samples": 100}
    server.receipt(server.update(server.task(bundle, config=still), 60))
    before = server.result(server.task(bundle, kind="evaluate"), 60)
    for _ in range(3):
        server.receipt(server.update(server.task(bundle, config={"max_steps": 40, "epochs": 5}), 60))
    after = server.result(server.task(bundle, kind="evaluate"), 60)
    assert after.metrics["loss"] < 0.8 * before.metrics["loss"]
    assert stored(one, bundle).steps > 60


def test_a_kill_leaves_personal_values_and_update_of_the_same_training(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("personal")
    server.publish_model(bundle, 0)
    tables = {"training": {"new_samples": 1, "max_steps": 2, "fetch_s": 2.0}, "sensor": {"period_s": 0.002}}
    task, steps = b"", 0
    chance = np.random.default_rng(5)
    for _ in range(5):
        one = device(**tables)
        # Kept back, it grows with every training, many a second.
        task = task or server.task(bundle, config={"skip_below_norm": HUGE, "skips": 1000})
        seen = steps

        def grown(one: Device = one, seen: int = seen) -> bool:
            with sqlite3.connect(f"file:{one.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
                found = database.execute("SELECT steps FROM reply").fetchone()
            return found is not None and found[0] > seen + int(chance.integers(1, 20))

        server.wait_for(grown, 60, "trainings")
        one.kill()
        with Outbox(one.state_dir / "outbox.sqlite", LIMIT) as outbox:
            row, personal = outbox.row(task), outbox.personal(bundle.digest, layout_of(bundle.manifest))
        assert row is not None
        assert personal is not None
        assert row.steps == personal.steps > steps, "of the same training, and it went on from the one before"
        steps = row.steps
    one = device(**tables)
    server.task(bundle)  # another task: what is kept back is sent now
    update = server.update(task, 60)
    assert update.steps >= steps
    assert set(update.delta) == {tensor.name for tensor in bundle.manifest.shared}


def test_a_restarted_device_and_a_new_bundle_go_on_with_the_personal_values(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("personal")
    still = {"learning_rate": 1e-12, "max_steps": 1}
    server.publish_model(bundle, 0)
    one = device()
    server.receipt(server.update(server.task(bundle), 60))
    trained = stored(one, bundle)
    one.kill()
    one = device()
    update = server.update(server.task(bundle, config=still), 60)
    assert update.steps == 1
    server.receipt(update)
    again = stored(one, bundle)
    assert again.steps == trained.steps + 1
    np.testing.assert_allclose(again.values, trained.values, atol=1e-7)
    optimizer = replace(bundle.manifest.optimizer, learning_rate=0.01)
    newer = replace(bundle, manifest=replace(bundle.manifest, optimizer=optimizer))
    server.publish_model(newer, 1)
    server.receipt(server.update(server.task(newer, version=1, config=still), 60))
    taken = stored(one, newer)
    assert taken.steps == 1
    np.testing.assert_allclose(taken.values, trained.values, atol=1e-7)
    assert stored(one, bundle).steps == again.steps, "the server may go back to it"


@pytest.mark.parametrize("encoding", ["f16", "q8", "topk"])
def test_moving_averages_stay_usable_through_lossy_encodings(
    server: Server, device: Devices, bundles: Bundles, encoding: str
) -> None:
    bundle = bundles("personal")
    shared = bundle.shared
    server.publish_model(bundle, 0)
    device(upload={"encoding": encoding, "topk_share": 0.25})
    losses = []
    for version in range(1, 6):
        update = server.update(server.task(bundle, version=version - 1, config={"epochs": 3}), 60)
        losses.append(update.metrics["loss_before"])
        shared = shared + decoded(update, bundle)
        server.publish_model(bundle, version, shared)
        server.receipt(update)
    assert losses[-1] < 0.5 * losses[0]
