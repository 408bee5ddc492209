"""One device on one stream, offline and as fast as it goes: the objects that the agent drives, without its threads."""

import hashlib
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.nab_yardsticks import Doubles
from edge_client.clock import SystemClock
from edge_client.learning.prediction import Prediction
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sample
from edge_client.settings import Anomaly, EdgeSettings
from edge_client.training.worker import Worker
from pollen import encoding, messages
from pollen.bundle import Bundle
from pollen.messages import Snapshot, Task

PERIOD_S: Final = 300.0
TASK: Final = b"n" * 16


@dataclass(frozen=True, eq=False)
class Watched:
    """`forecasts` [n] of a stream's values, NaN where there was none; where anomalies began and the errors drifted;
    and how often it trained."""

    forecasts: Doubles
    alarms: list[int]
    drifts: list[int]
    trainings: int


class StreamClock(SystemClock):
    """The monotonic time of the stream's newest value: a training takes none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds of the stream."""
        return self.now


def watch(bundle: Bundle, values: Doubles) -> Watched:
    """Let a device with default settings, and anomalies switched on, learn from `values` [n] in their order.

    It has no broker: it works on one train task for all its life, so all trainings go into one update.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = EdgeSettings("pi-1", "nab", bundle.manifest.model, Path(folder), anomaly=Anomaly(enabled=True))
        (settings.state_dir / "model").mkdir()
        limit = settings.upload.outbox_limit_bytes
        with Outbox(settings.state_dir / "outbox.sqlite", limit) as outbox:
            return _learn(settings, outbox, bundle, values)


def _learn(settings: EdgeSettings, outbox: Outbox, bundle: Bundle, values: Doubles) -> Watched:
    clock = StreamClock()
    store = ModelStore(settings.state_dir / "model", settings.upload.snapshot_limit_bytes)
    model = DeviceModel(settings, store, outbox)
    session = MqttSession(settings, bytes(8), clock, threading.Event())
    worker = Worker(settings, model, outbox, session, clock=clock, metrics=dict)
    model.take_bundle(bundle.to_bytes(), bundle.digest)
    model.take_snapshot(messages.encode(_first_snapshot(bundle)), 0)
    model.set_channels(1)
    worker.accept(messages.encode(Task(TASK, "train", bundle.manifest.model, 0, bundle.digest)))
    heard: list[Prediction] = []
    model.listeners.append(heard.append)

    forecasts = np.full(len(values), np.nan)
    alarms: list[int] = []
    drifts: list[int] = []
    for place, value in enumerate(values):
        if heard:
            forecasts[place] = heard.pop().values[0]
        clock.now = place * PERIOD_S
        model.observe([Sample(place, clock.now, 0.0, np.array([[value]], np.float32), None)])
        if model.learner is not None:
            alarms += [place] * (model.learner.evaluation.anomalies - len(alarms))
            drifts += [place] * (model.learner.drifts - len(drifts))
        while worker.advance() == 0.0:
            pass
    return Watched(forecasts, alarms, drifts, worker.updates_made)


def _first_snapshot(bundle: Bundle) -> Snapshot:
    """The bundle's own weights, as the server publishes them first."""
    digest = hashlib.sha256(bundle.shared.tobytes()).digest()
    return Snapshot(bundle.manifest.model, 0, digest, encoding.named(bundle.shared, bundle.manifest.shared))
