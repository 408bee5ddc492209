"""The server's graph that only predicts: taken in, kept on disk, and used while it knows the most."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.learning.learner import Predict
from edge_client.model.bundle_record import BundleRecord
from edge_client.model.trust import ModelTrust
from edge_client.settings import EdgeSettings
from pollen import atomic, messages
from pollen.bundle import Floats
from pollen.errors import InterpreterError, MessageError, PollenError
from pollen.inference_graph import InferenceGraph
from pollen.interpreter import Array, TrainingGraph
from pollen.messages import Inference
from pollen.signing import Subject

LOG = logging.getLogger(__name__)

RUNS: Final = 7  # whose median is a graph's time


class PublishedGraph:
    """The server's newest inference graph for the bundle in use. `version` is the loaded graph's, -1 for none;
    `predictions` counts what was predicted.

    With `inference.graph` = "auto" it is loaded only when it predicts a window quicker than the training graph does on
    this machine: int8 is the slower one on some. `file`: where the newest message is kept; `trust` and `record` say
    what is let in.
    """

    def __init__(self, settings: EdgeSettings, file: Path, *, trust: ModelTrust, record: BundleRecord) -> None:
        self._settings = settings
        self._trust = trust
        self._record = record
        self._file = file
        self._training: TrainingGraph | None = None
        self._bundle = b""
        self._graph: InferenceGraph | None = None
        self._judged: tuple[int, bytes] | None = None  # version and digest of the graph that was tried last
        self.version = -1
        self.predictions = 0

    def use(self, training: TrainingGraph, bundle: bytes) -> None:
        """The bundle with digest `bundle` is in use now; take up the graph on disk, if it is of this one."""
        self._training, self._bundle = training, bundle
        self._drop()
        if self._settings.inference.graph == "off" or not self._file.exists():
            return
        try:
            if self._file.stat().st_size <= self._settings.upload.snapshot_limit_bytes:
                self._load(self._decode(self._file.read_bytes()))
        except (OSError, PollenError) as error:
            LOG.warning("%s: not used: %s", self._file, error)

    def take(self, payload: bytes) -> None:
        """A message of the model's topic; an empty one withdraws the last. Raises PollenError."""
        if not payload:
            self._forget()
            return
        message = self._decode(payload)
        if message.bundle == self._bundle and (message.version, message.digest) == self._judged:
            return  # every connection brings it again
        self._load(message)
        try:
            atomic.write(self._file, payload)
        except OSError as error:
            LOG.error("%s: can't be written (%s); it is lost at a restart", self._file, error)

    def begun_anew(self, version: int) -> None:
        """The server has begun anew and is at `version`: a graph of a later one is of its life before."""
        if self._judged is not None and self._judged[0] > version:
            self._forget()

    def _forget(self) -> None:
        """The server has no such graph any more."""
        self._drop()
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            LOG.error("%s: can't be removed: %s", self._file, error)

    def newest(self, snapshot: int, *, trained_since: bool) -> Predict | None:
        """x [n, …] -> y [n, …] of the graph, if it knows at least as much as the snapshot of version `snapshot` (-1:
        none), and more where the device has trained from that one itself. It gives None when the graph fails."""
        return self._predict if self._graph is not None and self.version >= snapshot + trained_since else None

    def _predict(self, x: Array) -> Floats | None:
        if self._graph is None:
            return None
        try:
            output = self._graph.predict(x)
        except InterpreterError as error:
            LOG.warning("version %d is used no more: %s", self.version, error)
            self._graph, self.version = None, -1
            return None
        self.predictions += len(output)
        return output

    def _decode(self, payload: bytes) -> Inference:
        message = messages.decode_inference(payload, self._settings.upload.snapshot_limit_bytes)
        if message.model != self._settings.model:
            raise MessageError(f"infer: of model {message.model!r}, expected {self._settings.model!r}")
        subject = Subject("infer", message.model, message.version, message.digest, message.bundle)
        self._trust.check(message.signature, subject)
        return message

    def _load(self, message: Inference) -> None:
        """Use the graph in `message` from now on, if it is of the bundle in use and worth it."""
        self._drop()
        training = self._training
        if training is None or message.bundle != self._bundle or training.manifest.personal:
            LOG.debug("inference graph of version %d belongs to another bundle", message.version)
            return
        self._judged = message.version, message.digest
        with self._record.attempting(message.digest):
            graph = InferenceGraph(message.graph, training.manifest, self._settings.training.runtime)
            with suppress(InterpreterError):  # what fails and doesn't crash is found when it predicts
                graph.predict(np.zeros((1, *training.manifest.input_shape), training.manifest.input_dtype))
        if self._settings.inference.graph == "auto":
            its, ours = _seconds(training, graph)
            LOG.info("inference graph of version %d, %s: %.0f µs a window, the training graph takes %.0f",
                     message.version, message.kind, 1e6 * its, 1e6 * ours)  # fmt: skip
            if its >= ours:
                return
        self._graph, self.version = graph, message.version
        LOG.info("inference graph of version %d, %s, is ready to predict", message.version, message.kind)

    def _drop(self) -> None:
        self._graph, self._judged, self.version = None, None, -1


def _seconds(training: TrainingGraph, graph: InferenceGraph) -> tuple[float, float]:
    """CPU seconds of one prediction in `graph` and in `training`."""
    manifest = training.manifest
    x = np.zeros((1, *manifest.input_shape), manifest.input_dtype)
    weights, state = np.zeros(manifest.parameters, np.float32), np.zeros(manifest.state_size, np.float32)
    return _median(lambda: graph.predict(x)), _median(lambda: training.predict(weights, x, state))


def _median(predict: Callable[[], object]) -> float:
    predict()  # the first run plans memory
    times = []
    for _ in range(RUNS):
        started = time.thread_time()
        predict()
        times.append(time.thread_time() - started)
    return sorted(times)[RUNS // 2]
