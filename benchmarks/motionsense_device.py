"""A device of benchmarks.motionsense: the objects that the agent drives, without its threads, sensor and network."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.nab_device import StreamClock
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sample
from edge_client.settings import Drift, EdgeSettings, Learner, Policy, Upload
from edge_client.training.worker import Worker
from pollen import encoding, messages
from pollen.bundle import Bundle, Floats
from pollen.encoding import Encoding
from pollen.messages import Receipt, Snapshot, Task, Update

CHANNELS: Final = 6
UPDATE_LIMIT: Final = 10**7

Windows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class How:
    """What differs between devices of one run and another. Windows begin `hop` samples apart; each device makes
    `updates`, each from as many of them and at most `steps` steps of `epochs` passes; `replay` examples are remembered,
    a share `reservoir` of them from long ago."""

    hop: int = 128
    updates: int = 22
    epochs: int = 4
    steps: int = 40
    replay: int = 2000
    reservoir: float = 0.25
    balanced: bool = False
    drift: bool = True
    encoding: Encoding = "q8"


@dataclass(frozen=True, slots=True)
class Sent:
    """An update on its way: the message, its delta [F], and its size on the wire."""

    update: Update
    delta: Floats
    size_bytes: int


class StreamingDevice:
    """One person's device in `folder`, which trains after `new_samples` windows.

    `errors`: of each example's prediction before it was learned, 0 or 1.
    """

    def __init__(self, name: str, folder: Path, bundle: Bundle, how: How, new_samples: int) -> None:
        self._clock = StreamClock()
        self._bundle = bundle
        self._config = {"min_samples": new_samples, "epochs": how.epochs, "max_steps": how.steps}
        self._new_samples = new_samples
        settings = EdgeSettings(
            name,
            "motionsense",
            bundle.manifest.model,
            folder,
            # The windows are scaled as for the yardsticks, by constants.
            learner=Learner("label", replay_samples=how.replay, reservoir_share=how.reservoir, balanced=how.balanced,
                            standardise=False, hop=how.hop),
            drift=Drift() if how.drift else Drift("off"),
            policy=Policy(max_temperature_celsius=0.0, while_throttled=True),
            upload=Upload(how.encoding),
        )  # fmt: skip
        (folder / "model").mkdir(parents=True)
        limit = settings.upload.snapshot_limit_bytes
        self._outbox = Outbox(folder / "outbox.sqlite", settings.upload.outbox_limit_bytes)
        self._model = DeviceModel(settings, ModelStore(folder / "model", limit), self._outbox)
        session = MqttSession(settings, bytes(8), self._clock, threading.Event())  # never connected
        self._worker = Worker(settings, self._model, self._outbox, session, clock=self._clock, metrics=dict)
        self._model.take_bundle(bundle.to_bytes(), bundle.digest)
        self._model.take_snapshot(snapshot(bundle, bundle.shared, 0), 0)
        self._model.set_channels(CHANNELS)
        self._number = self._new = self._trained = 0
        self.errors: list[float] = []

    def close(self) -> None:
        """Close its database."""
        self._outbox.close()

    @property
    def drifts(self) -> int:
        """How often it noticed one."""
        return 0 if self._model.learner is None else self._model.learner.drifts

    @property
    def is_due(self) -> bool:
        """Whether it has as many new examples as a training needs."""
        return self._new >= self._new_samples

    @property
    def newest(self) -> Floats:
        """The weights [F] it predicts with."""
        return self._model.newest

    def observe(self, windows: Windows, label: int, seconds: float, *, follows: bool = True) -> None:
        """Take in a reading: k samples [k, C] and their label; not `follows`: there is a gap before it."""
        learner = self._model.learner
        if learner is None:
            raise SystemExit(f"error: the model doesn't fit: {self._model.problem}")
        self._clock.now = seconds
        self._number += 1 if follows else 2
        before = learner.prequential.count
        self._model.observe([Sample(self._number, seconds, 0.0, windows, label)])
        if learner.prequential.count > before:
            self.errors.append(float(learner.evaluation.error or 0.0))
        self._new = learner.buffer.total - self._trained

    def train(self, task: bytes, weights: Floats, version: int) -> Sent:
        """Work on a task with the server's `weights` [F] of that version, and send what came of it."""
        self._model.take_snapshot(snapshot(self._bundle, weights, version), version)
        message = Task(task, "train", self._bundle.manifest.model, version, self._bundle.digest, self._config)
        self._worker.accept(messages.encode(message))
        while self._worker.advance() == 0.0:
            pass
        row = self._outbox.row(task)
        if row is None or row.leaf != "update":
            raise SystemExit(f"error: a device gave no update: {self._worker.waiting_for}")
        learner = self._model.learner
        self._trained = 0 if learner is None else learner.buffer.total
        self._new = 0
        payload = self._outbox.freeze(task)
        update = messages.decode_update(payload, UPDATE_LIMIT)
        delta = np.empty_like(weights)
        encoding.decode_into(delta, update.delta, self._bundle.manifest.shared)
        return Sent(update, delta, len(payload))

    def merged(self, sent: Sent, version: int) -> None:
        """The receipt came."""
        self._outbox.receipted(sent.update.task, merged=True)
        self._worker.closed(Receipt(sent.update.task, sent.update.seq, "merged", version))

    def accuracy(self, weights: Floats, windows: Windows, labels: Labels) -> float:
        """The share of `windows` [n, T, C] that `weights` [F] tell right."""
        graph = self._model.graph
        if graph is None:
            raise SystemExit("error: there is no model")
        values, state = self._model.join(weights)
        return float((graph.predict(values, windows, state).argmax(1) == labels).mean())


def snapshot(bundle: Bundle, weights: Floats, version: int) -> bytes:
    """The message with which the server publishes `weights` [F]."""
    digest = hashlib.sha256(weights.tobytes()).digest()
    return messages.encode(
        Snapshot(bundle.manifest.model, version, digest, encoding.named(weights, bundle.manifest.shared))
    )
