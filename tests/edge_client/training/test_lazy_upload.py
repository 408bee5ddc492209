"""Lazy upload: a device that is asked to keep small updates back trains on, and loses nothing of them."""

import shutil
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.settings import EdgeSettings
from edge_client.training import trainer
from pollen.bundle import Bundle
from pollen.errors import MessageError
from tests.edge_client.fleet import Device, Server, decoded

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]

HUGE = 1e9  # a norm that no update has


def kept_back(device: Device) -> list[tuple[bytes, int, int]]:
    """Task, samples and how often running, of the updates that are kept back."""
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        found: list[Any] = database.execute("SELECT task, samples, skipped FROM reply WHERE skipped > 0").fetchall()
    return found


def test_a_small_update_is_kept_back_as_often_as_the_task_says(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    task = server.task(bundle, config={"skip_below_norm": HUGE, "skips": 2})
    update = server.update(task, 60)
    assert one.log().count("kept back") == 2
    assert update.samples >= 3 * 32, "each training waits for new examples, and the one update carries them all"
    assert update.steps > 3
    assert len(server.updates(task)) == 1
    assert update.metrics["loss_after"] < update.metrics["loss_before"]


def test_an_update_that_is_large_enough_is_sent_at_once(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    update = server.update(server.task(bundle, config={"skip_below_norm": 1e-6}), 60)
    assert float(np.linalg.norm(decoded(update, bundle))) > 1e-6
    assert "kept back" not in one.log()


def test_training_goes_on_until_the_update_is_large_enough(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(training={"max_steps": 2})
    plain = server.update(server.task(bundle), 60)
    server.receipt(plain)
    threshold = 1.5 * float(np.linalg.norm(decoded(plain, bundle)))
    update = server.update(server.task(bundle, config={"skip_below_norm": threshold, "skips": 1000}), 100)
    assert float(np.linalg.norm(decoded(update, bundle))) >= threshold
    assert one.log().count("kept back") >= 1


@pytest.mark.parametrize("encoding", ["f32", "q8", "topk"])
def test_what_is_kept_back_survives_a_kill_and_is_sent_when_another_task_comes(
    server: Server, device: Devices, bundles: Bundles, encoding: str
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"encoding": encoding})
    task = server.task(bundle, config={"skip_below_norm": HUGE, "skips": 1000})
    server.wait_for(lambda: [row for row in kept_back(one) if row[2] >= 2], 60, "an update kept back twice")
    one.kill()
    ((_, samples, skipped),) = kept_back(one)
    two = device(upload={"encoding": encoding})
    ((_, more, again),) = server.wait_for(
        lambda: [row for row in kept_back(two) if row[2] > skipped], 60, "the same update growing on"
    )
    assert more > samples
    assert again > skipped
    assert not server.updates(task)
    server.receipt(server.update(server.task(bundle), 60))
    update = server.update(task, 60)
    assert update.samples >= more
    assert kept_back(two) == []


def test_what_can_grow_no_more_is_sent_as_it_is(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    task = server.task(bundle, config={"skip_below_norm": HUGE, "skips": 1000})
    server.wait_for(lambda: kept_back(one), 60, "an update kept back")
    one.kill()
    ((_, samples, _),) = kept_back(one)
    shutil.rmtree(one.state_dir / "model")  # with it goes what the update was trained from
    device()
    assert server.update(task, 60).samples == samples


def test_a_stop_does_not_wait_for_what_is_kept_back(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"drain_s": 1000.0})
    server.task(bundle, config={"skip_below_norm": HUGE, "skips": 1000})
    server.wait_for(lambda: kept_back(one), 60, "an update kept back")
    assert one.terminate(60) == 0
    assert len(kept_back(one)) == 1


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"skip_below_norm": -1.0}, "skip_below_norm"),
        ({"skip_below_norm": "x"}, "skip_below_norm"),
        ({"skips": 1001}, "skips"),
        ({"upload": "whole"}, "upload"),
        ({"upload": "residual", "against": "abc"}, "against"),
        ({"upload": "residual", "against": 7}, "against"),
    ],
)
def test_a_task_that_asks_for_what_cant_be_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageError, match=named):
        trainer.plan(EdgeSettings("d", "f", "m").training, config)
