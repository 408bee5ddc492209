"""The model a device works with: its graph, the weights it knows, and the learner around them."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edge_client.learning.inputs import Inputs
from edge_client.learning.labels import LabelEvent
from edge_client.learning.learner import Learner, Listener
from edge_client.learning.prequential import Prequential
from edge_client.model.bundle_record import BundleRecord
from edge_client.model.personal_layers import Personal, layout_of
from edge_client.model.published_graph import PublishedGraph
from edge_client.model.store import ModelStore, Version, check_snapshot
from edge_client.model.trial import Trial
from edge_client.model.trust import ModelTrust
from edge_client.network.outbox import Outbox
from edge_client.sensors.sampling import Sample
from edge_client.settings import EdgeSettings
from pollen.bundle import Bundle, Floats
from pollen.errors import BundleError, InterpreterError, MessageError, PollenError, SettingsError
from pollen.interpreter import TrainingGraph, load
from pollen.manifest import Manifest
from pollen.sharing import Sharing
from pollen.signing import Subject, signed_at

LOG = logging.getLogger(__name__)


class DeviceModel:
    """Owner of bundle, weights and learner.

    Of the shared values [F], `first` are those in the bundle, `snapshot` the server's newest, `local` what the device
    trained since for a task; `personal` are the values [Q] that stay here, after `personal.steps` training steps.
    `own`: weights [P] and state [S] that it trained for itself alone, until there is a snapshot or a task's training.
    `published` is the server's graph that only predicts; `trust` and `record` say what is let in.

    Raises SettingsError when the key to trust can't be read.
    """

    def __init__(self, settings: EdgeSettings, store: ModelStore, outbox: Outbox) -> None:
        self._settings = settings
        self._store = store
        self._outbox = outbox
        self._inputs = Inputs(settings)
        self._sharing: Sharing | None = None
        self._variances: list[slice] = []
        self._first_personal = self.first = np.zeros(0, np.float32)
        self.personal = Personal(b"", "", 0, self.first)
        self.digest = b""
        self.graph: TrainingGraph | None = None
        self.learner: Learner | None = None
        self.snapshot: Version | None = None
        self.local: Floats | None = None
        self.own: tuple[Floats, Floats] | None = None
        self.problem = ""
        self.samples_seen = 0
        self._trial: Trial | None = None
        self._signed_at = 0
        self.trust = ModelTrust(settings.trust.key)
        self.record = BundleRecord(settings.state_dir / "model" / "bundles.json")
        self.published = PublishedGraph(
            settings, settings.state_dir / "model" / "current.infer", trust=self.trust, record=self.record
        )

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

    @property
    def predicting(self) -> tuple[Floats, Floats]:
        """The weights [P] and the state [S] that predict: the newest that the device has."""
        return self.join(self.newest) if self.own is None else self.own

    def take_trained(self, weights: Floats, state: Floats, steps: int) -> Floats:
        """Go on from the weights [P] and the state [S] that `steps` steps gave; returns the shared values [F]."""
        if self._sharing is None:
            raise BundleError("there is no model here yet")
        self._trained()
        self.own = None
        self.local, values = self._sharing.split(weights, state)
        self.personal = replace(self.personal, steps=self.personal.steps + steps, values=values)
        return self.local

    def take_own(self, weights: Floats, state: Floats) -> None:
        """Predict with the weights [P] and the state [S] that the device trained for itself."""
        self._trained()
        self.own = weights, state

    def begin_training(self) -> None:
        """A training is about to begin; should it be the bundle's first and end the process, that is remembered."""
        if not self.record.has_proven(self.digest, "train"):
            self.record.attempt(self.digest)

    def diverged(self) -> None:
        """A training gave no numbers. A bundle with which that goes on from the first is used no more."""
        reason = "" if self._trial is None else self._trial.diverged()
        if reason:
            self._go_back(reason)

    def failed(self, reason: str) -> None:
        """The graph gave an error: the bundle is used no more, and without another before it nothing is predicted."""
        failing = self.digest
        self._go_back(reason, for_now=True)
        if self.digest == failing:
            self.learner, self.problem = None, reason

    def reset_personal(self) -> None:
        """Personal values start again from the bundle's; on disk with the next update."""
        self.personal = replace(self.personal, values=self._first_personal)

    def restore(self) -> None:
        """Take up the newest bundle and snapshot on disk that work."""
        for place, bundle in enumerate(self._store.bundles()):
            try:
                self._use(bundle)
            except PollenError as error:
                LOG.error("%s", error)
                continue
            if place > 0:
                self._store.swap()
            self.snapshot = self._store.snapshot(bundle, self.trust)
            trial = self.record.trial
            if trial is not None and trial[0] == bundle.digest:
                self._trial = Trial(self._settings.trust, *trial)
            return

    @property
    def listeners(self) -> list[Listener]:
        """Those who hear each prediction; add to it."""
        return self._inputs.listeners

    def set_channels(self, channels: int, names: Sequence[str] = ()) -> None:
        """The sensor is open and gives `channels` channels; `problem` says when the model doesn't fit them."""
        if not self._inputs.use(channels, names):
            return
        self.learner, self.problem = None, ""
        if self.graph is None:
            return
        try:
            self.learner = self._inputs.learner(self.graph)
        except (BundleError, SettingsError) as error:
            self.problem = str(error)
            LOG.error("%s", error)

    def take_stored(self, digest: bytes) -> bool:
        """Go back to a bundle on disk; False when it isn't there. Raises PollenError when it can't be used or is
        refused."""
        self.record.check(digest)
        for place, bundle in enumerate(self._store.bundles()):
            if bundle.digest == digest:
                self._take(bundle)
                if place > 0:
                    self._store.swap()
                self.snapshot = self._store.snapshot(bundle, self.trust)
                return True
        return False

    def take_bundle(self, payload: bytes, digest: bytes) -> bool:
        """Use a bundle from the network; False when it is another than the one with `digest`.

        Raises PollenError, and keeps the previous model, when it is damaged or refused, isn't signed as it must be, or
        doesn't fit this device.
        """
        bundle = Bundle.from_bytes(payload, "the model's bundle topic")
        if bundle.digest != digest:
            return False
        if bundle.manifest.model != self._settings.model:
            raise BundleError(f"bundle of model {bundle.manifest.model!r}, this device learns {self._settings.model!r}")
        unproven = self._trial is not None
        self._take(bundle, not_before=self._signed_at)
        self._store.keep_bundle(payload, over=unproven)
        return True

    def take_snapshot(self, payload: bytes, server_version: int) -> None:
        """Use a snapshot from the network; raises MessageError when it isn't one of this model's, SignatureError when
        it isn't signed as it must be.

        A snapshot older than the one in use is left alone while the server (at `server_version` when it sent its
        task) is known to be further: the broker has then lost the newer one. It is also left alone when it was signed
        earlier: then it was sent again, by somebody who may have made up the task too.
        """
        if self.graph is None:
            raise MessageError("weights: there is no model here yet")
        known = self.snapshot
        found = check_snapshot(
            payload,
            self.graph.manifest,
            self._settings.upload.snapshot_limit_bytes,
            bundle=self.digest,
            trust=self.trust,
            not_before=self.record.signed_at if known is None else 0,
        )
        if known is not None and found.number < known.number <= server_version:
            return
        sent_again = self.trust.asked_for and known is not None and found.signed_at < known.signed_at
        if known is not None and found.number < known.number and sent_again:
            LOG.warning("weights: version %d was signed before version %d; left alone", found.number, known.number)
            return
        if known is not None and found.number < known.number:
            self.published.begun_anew(found.number)
        if known is None or found.number != known.number:
            self._store.keep_snapshot(payload)
        self.snapshot = found
        self.local = self.own = None

    def observe(self, samples: Sequence[Sample]) -> None:
        """Predict and learn from samples as far as there is a model for them."""
        self.samples_seen += sum(len(sample.values) for sample in samples)
        if self.learner is not None and samples:
            snapshot = -1 if self.snapshot is None else self.snapshot.number
            since = self.local is not None or self.own is not None
            published = self.published.newest(snapshot, trained_since=since)
            version = snapshot if published is None else self.published.version
            try:
                self.learner.observe(samples, *self.predicting, published, version)
            except InterpreterError as error:
                self.failed(str(error))
                return
            self._judge(self._trial, self.learner.prequential)

    def label(self, event: LabelEvent) -> LabelEvent | None:
        """Learn a label that came by itself; returns it in monotonic seconds, None when its time can't be told."""
        return None if self.learner is None else self.learner.label(event)

    def _trained(self) -> None:
        """A training has succeeded."""
        if not self.record.has_proven(self.digest, "train"):
            self.record.prove(self.digest, "train")
        if self._trial is not None:
            self._trial.trained()

    def _take(self, bundle: Bundle, not_before: int = 0) -> None:
        """Use another bundle than before, which is then on trial unless it has been there."""
        learner, first = self.learner, not self.digest
        before = learner.prequential.error if learner is not None else math.nan
        signed = 0 if self.snapshot is None else self.snapshot.signed_at
        self._use(bundle, not_before)
        self._trial = None
        if not first and not self.record.has_proven(bundle.digest, "predict"):
            comparable = self.learner is learner and math.isfinite(before)
            self._trial = Trial(self._settings.trust, bundle.digest, before if comparable else None)
            self.record.set_trial((bundle.digest, self._trial.before), signed)

    def _judge(self, trial: Trial | None, prequential: Prequential) -> None:
        """End the trial, or the use of the bundle, when it is time for it."""
        if trial is None:
            return
        reason = trial.judge(prequential)
        if reason:
            self._go_back(reason)
        elif trial.over:
            self._trial = None
            self.record.set_trial(None)
            self.record.prove(self.digest, "predict")
            LOG.info("bundle %s has passed its trial", self.digest.hex()[:8])

    def _go_back(self, reason: str, *, for_now: bool = False) -> None:
        """Use the bundle before this one, and this one no more. It stays where there is no other that works.

        `for_now`: see `BundleRecord.refuse`.
        """
        failed, self._trial = self.digest, None
        self.record.set_trial(None)
        for bundle in self._store.bundles():
            try:
                if bundle.digest == failed:
                    continue
                self._use(bundle)
            except PollenError as error:
                LOG.error("%s", error)
                continue
            self.record.refuse(failed, reason, for_now=for_now)
            self._store.swap()
            self.snapshot = self._store.snapshot(bundle, self.trust)
            LOG.error("bundle %s: %s; back to %s", failed.hex()[:8], reason, bundle.digest.hex()[:8])
            return
        LOG.error("bundle %s: %s; it stays, there is no other", failed.hex()[:8], reason)

    def _use(self, bundle: Bundle, not_before: int = 0) -> None:
        """Load a bundle. Raises PollenError, and changes nothing, when it can't be used."""
        subject = Subject("bundle", bundle.manifest.model, 0, bundle.digest, bundle.digest)
        self.trust.check(bundle.signature, subject, not_before=not_before)
        _check_buffer(bundle.manifest, self._settings.learner.replay_samples)
        layout = layout_of(bundle.manifest)
        kept = self._outbox.personal(bundle.digest, layout)
        graph = self._loaded(bundle)
        learner = self.learner
        if learner is None or not learner.use(graph):
            learner = self._inputs.learner(graph) if self._inputs.known else None
        self.problem = ""
        self.graph, self.learner, self.digest = graph, learner, bundle.digest
        self._sharing, self._variances = Sharing(bundle.manifest), list(_variances(bundle.manifest))
        self.first, self._first_personal = self._sharing.split(bundle.weights, bundle.state)
        usable = kept is not None and kept.values.shape == self._first_personal.shape
        self.personal = kept if kept and usable else Personal(bundle.digest, layout, 0, self._first_personal)
        self.local = self.own = None
        self.snapshot, self._signed_at = None, signed_at(bundle.signature)
        self.published.use(graph, bundle.digest)
        LOG.info("model %s, %d parameters, on %s", bundle.manifest.model, bundle.manifest.parameters, graph.runtime)

    def _loaded(self, bundle: Bundle) -> TrainingGraph:
        """The bundle's graph. Before it is used for the first time it runs once, so that a crash is known for one."""
        digest, how = bundle.digest, self._settings.training
        self.record.check(digest)
        if self.record.has_proven(digest, "run"):
            return load(bundle, how.runtime, how.threads)
        with self.record.attempting(digest):
            try:
                graph = load(bundle, how.runtime, how.threads)
                try_out(graph, bundle)
            except InterpreterError as error:
                self.record.refuse(digest, str(error), for_now=True)
                raise
        self.record.prove(digest, "run")
        return graph


def _check_buffer(manifest: Manifest, replay_samples: int) -> None:
    if manifest.state_size and replay_samples < manifest.batch:
        raise BundleError(
            f"model {manifest.model} has state, so it needs whole batches of {manifest.batch}; "
            f"learner.replay_samples = {replay_samples} must be at least that"
        )


def try_out(graph: TrainingGraph, bundle: Bundle) -> None:
    """Run both of its functions once. Raises InterpreterError."""
    manifest, batch = bundle.manifest, bundle.manifest.batch
    x = np.zeros((batch, *manifest.input_shape), manifest.input_dtype)
    y = np.zeros((batch, *manifest.label_shape), manifest.label_dtype)
    graph.predict(bundle.weights, x, bundle.state)
    graph.gradient(bundle.weights, x, y, bundle.state, [np.zeros(shape, np.float32) for shape in manifest.noise])


def _variances(manifest: Manifest) -> Iterator[slice]:
    """Where the moving variances stand in the state [S]."""
    start = 0
    for tensor in manifest.state:
        if tensor.is_variance:
            yield slice(start, start + tensor.size)
        start += tensor.size
