"""What is held back: by the day's bytes, and on a connection that costs by the byte. Real devices, real broker."""

import functools
import sqlite3
from collections.abc import Callable

import pytest

from pollen.bundle import Bundle
from tests.edge_client.fleet import Device, Server

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]


def unsent(device: Device) -> list[tuple[bytes, int]]:
    """Task and samples of the updates that were not handed over yet."""
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        found: list[tuple[bytes, int]] = database.execute("SELECT task, samples FROM reply WHERE handed = 0").fetchall()
    return found


def grows(server: Server, device: Device, task: bytes) -> int:
    """Wait until the unsent update for `task` has more samples than now; how many."""
    (before,) = server.wait_for(lambda: [n for found, n in unsent(device) if found == task], 60, "an unsent update")
    (after,) = server.wait_for(
        lambda: [n for found, n in unsent(device) if found == task and n > before], 60, "that it grows"
    )
    return int(after)


def published_bytes(server: Server) -> int:
    return sum(len(payload) for device, leaf, payload in server.received if leaf not in ("task", "receipt"))


@pytest.mark.parametrize("encoding", ["q8", "topk"])
def test_an_update_beyond_the_days_bytes_waits_and_grows(
    server: Server, device: Devices, bundles: Bundles, encoding: str
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    limits = {"bytes_per_day": 8000, "encoding": encoding}
    one = device(upload=limits)

    def settled(task: bytes) -> bool:
        return bool(server.updates(task)) or "bytes a day are left" in one.log()

    task, done = server.task(bundle), 0
    while True:  # until the budget is used up
        server.wait_for(functools.partial(settled, task), 60, "an update, or that it waits")
        if not server.updates(task):
            break
        done += 1
        server.receipt(server.update(task))
        task = server.task(bundle)
    assert done >= 2
    assert published_bytes(server) <= 8000
    assert 0 < server.vitals()["budget_left_bytes"] <= 8000
    assert len(server.payloads("vitals")) == 1, "at such a budget vitals come less than once a day"
    assert one.terminate() == 0, "a stop does not wait for what can't be sent"
    two = device(upload=limits)
    held = grows(server, two, task)
    assert not server.updates(task), "a restart does not refill the budget"
    two.kill()
    device(upload={"encoding": encoding})
    assert server.update(task, 60).samples >= held


def test_an_update_larger_than_a_days_bytes_is_reported_and_kept(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"bytes_per_day": 1000, "encoding": "f32"})
    task = server.task(bundle)
    server.wait_for(lambda: "too many for a day of 1000; it is kept" in one.log(), 60, "the error")
    grows(server, one, task)
    assert one.log().count("too many for a day") == 1
    assert not server.updates(task)


def test_on_a_metered_connection_updates_wait_and_grow(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"metered_interfaces": ["lo"]})
    task = server.task(bundle)
    held = grows(server, one, task)
    assert server.vitals()["metered"] == 1
    assert "connected over lo, which is metered" in one.log()
    assert not server.updates()
    assert one.terminate() == 0
    device(upload={"metered_interfaces": ["wwan0"]})
    update = server.update(task, 60)
    assert update.samples >= held
    server.receipt(update)
    size = len(server.payloads("update")[0])
    server.wait_for(lambda: server.vitals().get("update_bytes") == size, 30, "its size in the vitals")
    assert server.vitals()["metered"] == 0
