"""After a drift: a higher learning rate for some trainings, and a note to the server."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sample
from edge_client.settings import Drift, EdgeSettings, Training
from edge_client.training import optimizers
from edge_client.training.after_drift import AfterDrift
from edge_client.training.worker import Worker
from pollen import encoding, messages
from pollen.bundle import Bundle
from pollen.manifest import Tensor
from pollen.messages import Snapshot, Task, Update
from pollen.objective import Optimizer, Schedule
from tests.edge_client.fleet import LIMIT
from tests.pollen.manifests import manifest

TASK = b"d" * 16


def test_the_next_trainings_after_a_drift_are_faster() -> None:
    after = AfterDrift(Drift(trainings=2, learning_rate_factor=3.0))
    assert after.factor(None) == 1.0
    assert [after.factor(12.0) for _ in range(3)] == [3.0, 3.0, 1.0]
    # A new drift counts anew, also within the last one's trainings.
    assert [after.factor(20.0), after.factor(30.0), after.factor(30.0), after.factor(30.0)] == [3.0, 3.0, 3.0, 1.0]


def test_no_trainings_are_faster_where_none_shall_be() -> None:
    after = AfterDrift(Drift(trainings=0))
    assert [after.factor(1.0), after.factor(2.0)] == [1.0, 1.0]


HALVED = Schedule(
    "exponential_decay", {"initial_learning_rate": 0.1, "decay_rate": 0.5, "decay_steps": 1, "staircase": 0}
)


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.1, [-0.2, -0.4]), (HALVED, [-0.2, -0.3])], ids=["constant", "schedule"]
)
def test_every_rate_is_multiplied(rate: float | Schedule, expected: list[float]) -> None:
    model = manifest(Tensor("dense/kernel", (1,)))
    stepper = optimizers.make(Optimizer("sgd", rate, {}), model, rate_factor=2.0)
    w = np.zeros(1, np.float32)
    for place in expected:
        stepper.step(w, np.ones(1, np.float32))
        assert w[0] == pytest.approx(place)


class _Offline:
    """A device with a train task and no connection; it keeps the learning rates that it trained with."""

    def __init__(self, folder: Path, outbox: Outbox, bundle: Bundle, drift: Drift) -> None:
        settings = EdgeSettings("pi-1", "test", "telemetry", folder, drift=drift, training=Training(new_samples=20))
        (folder / "model").mkdir()
        self.outbox = outbox
        self.model = DeviceModel(settings, ModelStore(folder / "model", LIMIT), outbox)
        clock = SystemClock()
        session = MqttSession(settings, bytes(8), clock, threading.Event())
        self.worker = Worker(settings, self.model, outbox, session, clock=clock, metrics=dict)
        assert self.model.take_bundle(bundle.to_bytes(), bundle.digest)
        digest = hashlib.sha256(bundle.shared.tobytes()).digest()
        named = encoding.named(bundle.shared, bundle.manifest.shared)
        self.model.take_snapshot(messages.encode(Snapshot("telemetry", 0, digest, named)), 0)
        self.model.set_channels(2)
        self.worker.accept(messages.encode(Task(TASK, "train", "telemetry", 0, bundle.digest)))
        self.number = 0

    def live(self, readings: np.ndarray[Any, Any]) -> None:
        for values in readings.astype(np.float32):
            self.model.observe([Sample(self.number, float(self.number), 0.0, values[np.newaxis], None)])
            self.number += 1
            while self.worker.advance() == 0.0:
                pass

    def update(self) -> Update:
        return messages.decode_update(self.outbox.payload(TASK), LIMIT)


def test_a_drift_makes_trainings_faster_and_is_told_with_the_update(
    bundles: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[float] = []
    make = optimizers.make

    def remember(*arguments: Any, **options: Any) -> Any:
        factors.append(options["rate_factor"])
        return make(*arguments, **options)

    monkeypatch.setattr(optimizers, "make", remember)
    chance = np.random.default_rng(0)
    turns = np.arange(1200)[:, np.newaxis] / [9.0, 13.0]
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        device = _Offline(tmp_path, outbox, bundles("forecast"), Drift(trainings=3, learning_rate_factor=2.0))
        device.live(np.sin(turns) + chance.normal(0, 0.05, turns.shape))
        learner = device.model.learner
        assert learner is not None
        before = len(factors)
        assert learner.drifts == 0
        assert before > 30
        assert set(factors) == {1.0}
        metrics = device.update().metrics
        assert metrics["drifts"] == 0
        assert "samples_since_drift" not in metrics

        noise = chance.normal(0, 1, (1200, 2))  # nothing to be foreseen any more
        while learner.drifts == 0 and len(noise):
            device.live(noise[:1])
            noise = noise[1:]
        assert learner.drifts == 1
        device.live(noise[:200])
        assert learner.drifts == 1
        fast = factors.index(2.0)
        assert factors[fast : fast + 4] == [2.0, 2.0, 2.0, 1.0]
        metrics = device.update().metrics
        assert metrics["drifts"] == 1
        assert 160 <= metrics["samples_since_drift"] <= 200
