"""The model a device works with: its graph, the weights it knows, and the learner around them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edge_client.learning.learner import Learner
from edge_client.learning.standardise import Standardiser
from edge_client.model.personal_layers import Personal, layout_of
from edge_client.model.published_graph import PublishedGraph
from edge_client.model.store import ModelStore, Version, check_snapshot
from edge_client.network.outbox import Outbox
from edge_client.sensors.sampling import Sample
from edge_client.settings import EdgeSettings
from pollen.bundle import Bundle, Floats
from pollen.errors import BundleError, MessageError, PollenError
from pollen.interpreter import TrainingGraph, load
from pollen.manifest import Manifest
from pollen.sharing import Sharing

LOG = logging.getLogger(__name__)


class DeviceModel:
    """Owner of bundle, weights and learner.

    Of the shared values [F], `first` are those in the bundle, `snapshot` the server's newest, `local` what the device
    trained since; `personal` are the values [Q] that stay here, after `personal.steps` training steps.
    `published` is the server's graph that only predicts.
    """

    def __init__(self, settings: EdgeSettings, store: ModelStore, outbox: Outbox) -> None:
        self._settings = settings
        self._store = store
        self._outbox = outbox
        self._standardiser: Standardiser | None = None
        self._channels = 0
        self._sharing: Sharing | None = None
        self._variances: list[slice] = []
        self._first_personal = self.first = np.zeros(0, np.float32)
        self.personal = Personal(b"", "", 0, self.first)
        self.digest = b""
        self.graph: TrainingGraph | None = None
        self.learner: Learner | None = None
        self.snapshot: Version | None = None
        self.local: Floats | None = None
        self.problem = ""
        self.samples_seen = 0
        self.published = PublishedGraph(settings, settings.state_dir / "model" / "current.infer")

    @property
    def newest(self) -> Floats:
        """The newest shared values [F] the device has: its own, else the snapshot's, else those in the bundle."""
        if self.local is not None:
            return self.local
        return self.first if self.snapshot is None else self.snapshot.weights

    def join(self, shared: Floats) -> tuple[Floats, Floats]:
        """The weights [P] and the state [S] that `shared` [F] makes with this device's personal values; read-only.

        Merge rules and lossy encodings may overshoot, so that a moving variance falls below 0, of which there is no
        root; then it is 0.
        """
        if self._sharing is None:
            raise BundleError("there is no model here yet")
        weights, state = self._sharing.join(shared, self.personal.values)
        if self._variances:
            state = state.copy()
            for variance in self._variances:
                np.maximum(state[variance], 0, out=state[variance])
        return weights, state

    def take_trained(self, weights: Floats, state: Floats, steps: int) -> Floats:
        """Go on from the weights [P] and the state [S] that `steps` steps gave; returns the shared values [F]."""
        if self._sharing is None:
            raise BundleError("there is no model here yet")
        self.local, values = self._sharing.split(weights, state)
        self.personal = replace(self.personal, steps=self.personal.steps + steps, values=values)
        return self.local

    def reset_personal(self) -> None:
        """Personal values start again from the bundle's; on disk with the next update."""
        self.personal = replace(self.personal, values=self._first_personal)

    def restore(self) -> None:
        """Take up the newest bundle and snapshot on disk that work."""
        for bundle in self._store.bundles():
            try:
                self._use(bundle)
            except PollenError as error:
                LOG.error("%s", error)
            else:
                return

    def set_channels(self, channels: int) -> None:
        """The sensor is open and gives `channels` channels; `problem` says when the model doesn't fit them."""
        if channels == self._channels:
            return
        self._channels = channels
        self._standardiser = Standardiser(channels, self._settings.learner.memory_samples)
        self.learner, self.problem = None, ""
        if self.graph is None:
            return
        try:
            self.learner = self._new_learner(self.graph)
        except BundleError as error:
            self.problem = str(error)
            LOG.error("%s", error)

    def take_stored(self, digest: bytes) -> bool:
        """Go back to a bundle on disk; False when it isn't there. Raises PollenError when it can't be used."""
        for place, bundle in enumerate(self._store.bundles()):
            if bundle.digest == digest:
                self._use(bundle)
                if place > 0:
                    self._store.keep_bundle(bundle.to_bytes())
                return True
        return False

    def take_bundle(self, payload: bytes, digest: bytes) -> bool:
        """Use a bundle from the network; False when it is another than the one with `digest`.

        Raises PollenError, and keeps the previous model, when it is damaged or doesn't fit this device.
        """
        bundle = Bundle.from_bytes(payload, "the model's bundle topic")
        if bundle.digest != digest:
            return False
        if bundle.manifest.model != self._settings.model:
            raise BundleError(f"bundle of model {bundle.manifest.model!r}, this device learns {self._settings.model!r}")
        self._use(bundle)
        self._store.keep_bundle(payload)
        return True

    def take_snapshot(self, payload: bytes, server_version: int) -> None:
        """Use a snapshot from the network; raises MessageError when it isn't one of this model's.

        A snapshot older than the one in use is left alone while the server (at `server_version` when it sent its
        task) is known to be further: the broker has then lost the newer one.
        """
        if self.graph is None:
            raise MessageError("weights: there is no model here yet")
        found = check_snapshot(payload, self.graph.manifest, self._settings.upload.snapshot_limit_bytes)
        known = self.snapshot
        if known is not None and found.number < known.number <= server_version:
            return
        if known is not None and found.number < known.number:
            self.published.begun_anew(found.number)
        if known is None or found.number != known.number:
            self._store.keep_snapshot(payload)
        self.snapshot = found
        self.local = None

    def observe(self, samples: Sequence[Sample]) -> None:
        """Predict and learn from samples as far as there is a model for them."""
        self.samples_seen += sum(len(sample.values) for sample in samples)
        if self.learner is not None and samples:
            snapshot = -1 if self.snapshot is None else self.snapshot.number
            published = self.published.newest(snapshot, trained_since=self.local is not None)
            self.learner.observe(samples, *self.join(self.newest), published)

    def _use(self, bundle: Bundle) -> None:
        _check_buffer(bundle.manifest, self._settings.learner.replay_samples)
        layout = layout_of(bundle.manifest)
        kept = self._outbox.personal(bundle.digest, layout)
        graph = load(bundle, self._settings.training.runtime)
        learner = self.learner
        if learner is None or not learner.use(graph):
            learner = self._new_learner(graph) if self._channels else None
        self.problem = ""
        self.graph, self.learner, self.digest = graph, learner, bundle.digest
        self._sharing, self._variances = Sharing(bundle.manifest), list(_variances(bundle.manifest))
        self.first, self._first_personal = self._sharing.split(bundle.weights, bundle.state)
        usable = kept is not None and kept.values.shape == self._first_personal.shape
        self.personal = kept if kept and usable else Personal(bundle.digest, layout, 0, self._first_personal)
        self.local = None
        self.snapshot = self._store.snapshot(bundle.manifest)
        self.published.use(graph, bundle.digest)
        LOG.info("model %s, %d parameters, on %s", bundle.manifest.model, bundle.manifest.parameters, graph.runtime)

    def _new_learner(self, graph: TrainingGraph) -> Learner:
        standardiser = self._standardiser or Standardiser(self._channels, self._settings.learner.memory_samples)
        return Learner(graph, self._settings.learner, self._channels, standardiser)


def _check_buffer(manifest: Manifest, replay_samples: int) -> None:
    if manifest.state_size and replay_samples < manifest.batch:
        raise BundleError(
            f"model {manifest.model} has state, so it needs whole batches of {manifest.batch}; "
            f"learner.replay_samples = {replay_samples} must be at least that"
        )


def _variances(manifest: Manifest) -> Iterator[slice]:
    """Where the moving variances stand in the state [S]."""
    start = 0
    for tensor in manifest.state:
        if tensor.name.endswith("moving_variance"):
            yield slice(start, start + tensor.size)
        start += tensor.size
