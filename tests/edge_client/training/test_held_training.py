"""Training that the policy holds: it doesn't begin, or stops where it is and goes on; and what the device says."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client import settings
from edge_client.clock import SystemClock
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sample
from edge_client.settings import EdgeSettings, Training
from edge_client.training import policy
from edge_client.training.policy import Policy
from edge_client.training.worker import IDLE_S, Worker
from pollen import encoding, messages
from pollen.bundle import Bundle
from pollen.messages import Snapshot, Task
from tests.edge_client.fleet import LIMIT, Device, Server

Bundles = Callable[[str], Bundle]
TASK = b"t" * 16


class Offline:
    """A device with a model, no connection, and a machine in `folder` that the test makes hot or cool."""

    def __init__(self, folder: Path, outbox: Outbox, bundle: Bundle) -> None:
        chosen = EdgeSettings(
            "pi-1", "test", "telemetry", folder, training=Training(new_samples=20, epochs=50, slice_ms=0.1)
        )
        (folder / "model").mkdir()
        self.folder, self.outbox = folder, outbox
        self.heat(50)
        self.model = DeviceModel(chosen, ModelStore(folder / "model", LIMIT), outbox)
        clock = SystemClock()
        session = MqttSession(chosen, bytes(8), clock, threading.Event())
        rules = Policy(settings.Policy(), clock, folder)
        self.worker = Worker(chosen, self.model, outbox, session, clock=clock, metrics=dict, policy=rules)
        assert self.model.take_bundle(bundle.to_bytes(), bundle.digest)
        digest = hashlib.sha256(bundle.shared.tobytes()).digest()
        named = encoding.named(bundle.shared, bundle.manifest.shared)
        self.model.take_snapshot(messages.encode(Snapshot("telemetry", 0, digest, named)), 0)
        self.model.set_channels(2)
        self.bundle = bundle
        self.seen = 0

    def heat(self, celsius: int) -> None:
        zone = self.folder / "sys/class/thermal/thermal_zone0/temp"
        zone.parent.mkdir(parents=True, exist_ok=True)
        zone.write_text(f"{1000 * celsius}\n")

    def ask(self) -> None:
        self.worker.accept(messages.encode(Task(TASK, "train", "telemetry", 0, self.bundle.digest)))

    def sense(self, count: int) -> None:
        for number in range(self.seen, self.seen + count):
            values = np.sin([[number / 3, number / 5]]).astype(np.float32)
            self.model.observe([Sample(number, float(number), 0.0, values, None)])
        self.seen += count


@pytest.fixture
def offline(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offline]:
    monkeypatch.setattr(policy, "CHECK_S", 0.0)  # look at the machine every time
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        yield Offline(tmp_path, outbox, bundles("forecast"))


def test_the_device_says_what_it_waits_for(offline: Offline) -> None:
    assert offline.worker.waiting_for == "no task from the server, there is no connection"
    offline.ask()
    offline.sense(10)
    examples = offline.worker.waiting_for
    assert examples.endswith(" of 20 new examples")
    assert int(examples.split()[0]) <= 10
    assert offline.worker.advance() == IDLE_S
    offline.heat(90)
    offline.sense(30)
    assert offline.worker.waiting_for == "the temperature is 90 °C (limit 80); training goes on at 75 °C"
    assert offline.worker.hold == 1
    offline.heat(50)
    assert offline.worker.waiting_for == ""
    assert offline.worker.hold == 0


def test_a_hot_device_begins_no_training(offline: Offline) -> None:
    offline.ask()
    offline.heat(90)
    offline.sense(40)
    for _ in range(20):
        assert offline.worker.advance() == IDLE_S
    assert offline.outbox.row(TASK) is None
    offline.heat(50)
    while offline.outbox.row(TASK) is None:
        offline.worker.advance()
    assert offline.worker.updates_made == 1


def test_a_training_that_is_held_goes_on_where_it_was(offline: Offline) -> None:
    offline.ask()
    offline.sense(40)
    offline.worker.advance()  # begins
    assert offline.worker.advance() == 0.0, "the next slice is due at once"
    offline.heat(90)
    for _ in range(1000):
        assert offline.worker.advance() == IDLE_S
    assert offline.worker.waiting_for.startswith("the temperature is 90 °C")
    assert offline.outbox.row(TASK) is None
    offline.sense(40)  # sampling goes on
    offline.heat(75)
    while (row := offline.outbox.row(TASK)) is None:
        assert offline.worker.advance() in (0.0, IDLE_S)
    assert row.steps > 50
    assert offline.worker.updates_made == 1
    assert offline.worker.grows


def test_what_waits_for_its_receipt_is_said(offline: Offline) -> None:
    offline.ask()
    offline.sense(40)
    while offline.outbox.row(TASK) is None:
        offline.worker.advance()
    offline.outbox.freeze(TASK)
    assert offline.worker.waiting_for == "no receipt from the server yet for what was learned last"
    assert not offline.worker.grows


def test_a_busy_machine_samples_and_reports_but_does_not_train(
    server: Server, device: Callable[..., Device], bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(policy={"max_load": 1e-9})
    task = server.task(bundle)
    server.wait_for(lambda: server.vitals().get("buffer_samples", 0) > 100, 60, "samples far beyond the 32 needed")
    assert server.vitals()["training_held"] == 3
    assert not server.updates(task)
    one.kill()
    device(policy={"max_load": 1e9})
    server.task(bundle, task=task)
    assert server.update(task, 60).steps > 0
