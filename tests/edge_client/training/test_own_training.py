"""A device that is cut off and has nothing to work on for the server: it goes on learning for itself alone."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client import settings
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sample
from edge_client.settings import EdgeSettings, Training
from edge_client.training import policy
from edge_client.training.policy import Policy
from edge_client.training.worker import Worker
from pollen import encoding, messages
from pollen.bundle import Bundle
from pollen.errors import InterpreterError
from pollen.interpreter import TrainingGraph
from pollen.messages import Receipt, Snapshot, Task
from tests.edge_client.clock import VirtualClock
from tests.edge_client.fleet import LIMIT, Device, Server, decoded, rows

Bundles = Callable[[str], Bundle]
NEW = 32


class CutOff:
    """A device with a model, examples, no connection and a clock that only moves when told."""

    def __init__(self, folder: Path, bundle: Bundle, **training: Any) -> None:
        how = Training(new_samples=NEW, epochs=5, **training)
        chosen = EdgeSettings("pi-1", "test", "telemetry", folder, training=how)
        (folder / "model").mkdir(parents=True)
        self.folder, self.bundle = folder, bundle
        self.clock = VirtualClock()
        self.outbox = Outbox(folder / "outbox.sqlite", LIMIT)
        self.model = DeviceModel(chosen, ModelStore(folder / "model", LIMIT), self.outbox)
        session = MqttSession(chosen, bytes(8), self.clock, threading.Event())
        rules = Policy(settings.Policy(), self.clock, folder)
        self.worker = Worker(chosen, self.model, self.outbox, session, clock=self.clock, metrics=dict, policy=rules)
        assert self.model.take_bundle(bundle.to_bytes(), bundle.digest)
        self.publish(0, bundle.shared)
        self.model.set_channels(2)
        self.seen = 0

    def publish(self, version: int, shared: np.ndarray) -> None:
        digest = hashlib.sha256(shared.tobytes()).digest()
        named = encoding.named(shared, self.bundle.manifest.shared)
        self.model.take_snapshot(messages.encode(Snapshot("telemetry", version, digest, named)), version)

    def ask(self, task: bytes, **config: Any) -> None:
        self.worker.accept(messages.encode(Task(task, "train", "telemetry", 0, self.bundle.digest, config)))

    def live(self, readings: int) -> None:
        for number in range(self.seen, self.seen + readings):
            values = np.sin([[number / 3, number / 5]]).astype(np.float32)
            self.model.observe([Sample(number, float(number), 0.0, values, None)])
            self.seen += 1
            self.work()

    def work(self) -> None:
        while self.worker.advance() == 0.0:
            pass
        self.worker.advance()

    @property
    def trainings(self) -> int:
        return self.worker.own.trainings

    @property
    def error(self) -> float:
        assert self.model.learner is not None
        return self.model.learner.prequential.error


@pytest.fixture
def cut_off(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CutOff]]:
    monkeypatch.setattr(policy, "CHECK_S", 0.0)
    made: list[CutOff] = []

    def make(model: str = "personal", **training: Any) -> CutOff:
        made.append(CutOff(tmp_path / str(len(made)), bundles(model), **training))
        return made[-1]

    yield make
    for device in made:
        device.outbox.close()


def test_it_learns_for_itself_once_it_is_cut_off_for_long_enough(cut_off: Callable[..., CutOff]) -> None:
    device, idle = cut_off("forecast"), cut_off("forecast", offline_s=1e9)
    for one in (device, idle):
        one.clock.now += 59.0
        one.live(100)
        assert not one.trainings
        assert one.worker.waiting_for == "no task from the server, there is no connection"
        one.clock.now += 1.0
        one.live(600)
    assert device.trainings >= 600 // NEW - 1
    assert device.worker.waiting_for.endswith(f" of {NEW} new examples")
    assert not idle.trainings
    assert device.error < 0.5 * idle.error
    assert not device.outbox.rows


def test_nothing_of_it_is_sent_or_kept_and_the_next_task_has_its_examples(cut_off: Callable[..., CutOff]) -> None:
    device = cut_off(offline_s=0.0)
    device.ask(b"a" * 16, encoding="f32")
    device.live(60)
    payload, row = device.outbox.freeze(b"a" * 16), device.outbox.row(b"a" * 16)
    local, personal = device.model.local, device.model.personal
    assert row is not None
    assert not device.trainings, "the task's update grew instead"
    device.live(200)
    assert device.trainings >= 5
    assert device.model.own is not None
    assert not np.array_equal(device.model.predicting[0], device.model.join(device.model.newest)[0])
    assert device.model.local is local
    assert device.model.personal is personal
    kept = device.outbox.personal(device.bundle.digest, personal.layout)
    assert kept is not None
    np.testing.assert_array_equal(kept.values, personal.values)
    assert (device.outbox.row(row.task), device.outbox.payload(row.task)) == (row, payload)
    assert device.worker.waiting_for.endswith(f" of {NEW} new examples")

    receipt = Receipt(row.task, row.seq, "merged", 1, 1.0, 0)
    device.outbox.receipted(row.task, merged=True)
    device.worker.closed(receipt)
    shared = device.bundle.shared + np.float32(0.01)
    device.publish(1, shared)
    assert device.model.own is None
    device.ask(b"b" * 16, min_samples=150, encoding="f32", learning_rate=1e-9)
    device.live(1)
    update = messages.decode_update(device.outbox.payload(b"b" * 16), LIMIT)
    assert update.base == 1
    assert update.samples > 150, "examples that it trained on for itself count for the task"
    weights = encoding.named(decoded(update, device.bundle), device.bundle.manifest.shared)
    assert max(np.abs(weights[tensor.name]).max() for tensor in device.bundle.manifest.weights
               if tensor.name in weights) < 1e-5  # fmt: skip
    np.testing.assert_allclose(device.model.personal.values, personal.values, atol=1e-5)


def test_the_policy_holds_it_and_a_task_ends_it(cut_off: Callable[..., CutOff]) -> None:
    device = cut_off("forecast", offline_s=0.0)
    zone = device.folder / "sys/class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("90000\n")
    device.live(100)
    assert not device.trainings
    assert device.worker.waiting_for.startswith("the temperature is 90 °C")
    zone.write_text("50000\n")
    device.work()
    own = device.worker.own
    assert own.trainings == 1
    assert device.model.own is not None
    device.ask(b"a" * 16)
    device.work()
    assert device.outbox.row(b"a" * 16) is not None
    assert own.trainings == 1
    assert device.model.own is None


def test_a_rate_that_is_too_high_costs_only_what_it_learned_for_itself(cut_off: Callable[..., CutOff]) -> None:
    device = cut_off("forecast", offline_s=0.0)
    optimizer = replace(device.bundle.manifest.optimizer, learning_rate=1e30)
    assert device.model.graph is not None
    device.model.graph.manifest = replace(device.bundle.manifest, optimizer=optimizer)
    device.live(200)
    assert not device.trainings
    assert device.model.own is None
    assert np.isfinite(device.error)
    assert device.error < 10


@pytest.mark.parametrize("function", ["predict", "gradient"])
def test_a_graph_that_fails_ends_nothing_but_its_use(
    cut_off: Callable[..., CutOff], function: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No graph that passes its first run and fails later could be built, so its function is made to."""
    device = cut_off("forecast", max_steps=20)
    device.ask(b"a" * 16)
    device.live(60)
    assert device.worker.grows

    def fail(*_: Any, **__: Any) -> Any:
        raise InterpreterError("no memory for tensors")

    monkeypatch.setattr(TrainingGraph, function, fail)
    with caplog.at_level(logging.WARNING):
        device.live(100)
        for _ in range(100):
            device.worker.advance()
    assert device.model.problem == "no memory for tensors"
    assert len([record for record in caplog.records if "no memory" in record.message]) <= 3
    assert not device.worker.grows, "what was learned before is sent as it is"
    assert [row.task for row in device.outbox.rows] == [b"a" * 16]
    monkeypatch.undo()
    again = device.bundle.manifest
    other = replace(device.bundle, manifest=replace(again, optimizer=replace(again.optimizer, learning_rate=0.01)))
    assert device.model.take_bundle(other.to_bytes(), other.digest)
    assert not device.model.problem
    device.live(20)
    assert device.model.learner is not None


def test_an_agent_whose_receipt_never_came_goes_on_learning_and_is_merged_once(
    server: Server, device: Callable[..., Device], bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 3)
    one = device(training={"offline_s": 1.0, "new_samples": 32, "max_steps": 200})
    task = server.task(bundle, version=3)
    update = server.update(task)
    server.broker.kill()
    waiting = rows(one)
    assert [row[:2] for row in waiting] == [(task, 1)]
    server.wait_for(lambda: one.log().count("trained for itself") >= 5, 60, "five trainings without a broker")
    assert rows(one) == waiting
    server.broker.restart()
    server.wait_for(lambda: len(server.updates(task)) >= 2, 30, "the update again")
    assert len(set(server.payloads("update"))) == 1
    server.wait_for(lambda: server.vitals().get("own_trainings", 0) >= 5, 30, "vitals that say so")
    server.receipt(update)
    server.wait_for(lambda: server.vitals()["receipts_merged"] == 1, 30, "the merge")
    assert server.vitals()["outbox_rows"] == 0
    server.publish_model(bundle, 4)
    following = server.update(
        server.task(bundle, version=4, config={"encoding": "f32", "max_steps": 1, "learning_rate": 1e-9}), 60
    )
    assert following.base == 4
    # What the first update's compression left goes along, at most half a step of each tensor's largest number.
    assert np.abs(decoded(following, bundle)).max() <= np.abs(decoded(update, bundle)).max() / 100
