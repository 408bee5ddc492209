"""window → predict, then score, then learn: what happens to each sample, for one model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edge_client.learning.drift.state import count
from edge_client.learning.evaluation import Evaluation
from edge_client.learning.labels import LabelEvent, LateLabels
from edge_client.learning.prediction import Prediction, values_of
from edge_client.learning.prequential import Prequential
from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.learning.standardise import WARM_UP, Standardiser
from edge_client.learning.windowing import Event, Labeller, Window, Windower
from edge_client.sensors.sampling import Sample
from edge_client.settings import Anomaly, Drift, Labels
from edge_client.settings import Learner as LearnerSettings
from pollen.bundle import Floats, Manifest
from pollen.interpreter import Array, TrainingGraph

LOG = logging.getLogger(__name__)

Predict = Callable[[Array], Floats | None]  # x [n, …] -> y [n, …], None where it can't
Listener = Callable[[Prediction], None]


class Learner:
    """Predicts each window with the weights of the moment when it is complete; when its truth comes, scores that
    prediction, and only then puts the example into the replay buffer.

    `channels`: inputs of the model, C; `label_channel`: the place among the sensor's channels of the one that is the
    label and no input. `standardiser` belongs to the sensor and outlives models; it learns from a reading after the
    windows that the reading completes were taken. `listeners` are given each prediction that is a number. After a
    drift buffer and statistics forget what is old. `trained_total`: how many of the buffer's examples so far the last
    training for a task knew, also one before a restart.

    Memory is fixed: window, buffer, a few sums, and windows whose truth may still come, at most the horizon or
    `labels.waiting`. Raises BundleError when the model doesn't fit the sensor or the target.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        settings: LearnerSettings,
        channels: int,
        standardiser: Standardiser,
        *,
        labels: Labels | None = None,
        label_channel: int | None = None,
        drift: Drift | None = None,
        anomaly: Anomaly | None = None,
        listeners: list[Listener] | None = None,
    ) -> None:
        self._graph = graph
        self._settings = settings
        self._channels = channels
        self._label_channel = label_channel
        self._inputs = np.array([index for index in range(channels + 1) if index != label_channel])
        self._standardiser = standardiser if settings.standardise else None
        # Integers name rows of a table, so they are taken as the sensor gives them.
        self._raw = graph.manifest.input_dtype == "int32"
        self._windower = Windower(graph.manifest, settings, channels)
        self._labeller = Labeller(graph.manifest)
        self._late = LateLabels(labels or Labels())
        self._next_number = 0
        self._version = -1
        self._untrained: int | None = None  # examples, of those a restart brings back
        self.trained_total = 0
        self._keep = 0 if drift is None else drift.keep_samples
        self._a_listener_failed = False
        self._new_evaluation = partial(Evaluation, graph.manifest, settings.target, drift, anomaly)
        self.evaluation = self._new_evaluation()
        self.listeners: list[Listener] = [] if listeners is None else listeners
        self.buffer = ReplayBuffer(
            graph.manifest, settings.replay_samples, settings.reservoir_share, balanced=settings.balanced
        )
        self.windows = 0
        self.unknown_labels = 0  # windows left out since their label is no class of this model

    @property
    def prequential(self) -> Prequential:
        """The errors of the predictions."""
        return self.evaluation.prequential

    @property
    def drifts(self) -> int:
        """How often the errors have drifted."""
        return self.evaluation.drifts

    @property
    def drifted_at(self) -> float | None:
        """When they last did, monotonic seconds; None if not since the start."""
        return self.evaluation.drifted_at

    @property
    def since_drift(self) -> int:
        """Examples since the last drift, or since the start."""
        return self.evaluation.since_drift

    @property
    def unknown_inputs(self) -> int:
        """Windows left out since a value isn't one of the integers that this model takes."""
        return self._windower.unknown_inputs

    @property
    def missed_labels(self) -> int:
        """Windows whose label never came."""
        return self._late.missed

    @property
    def refused_labels(self) -> int:
        """Labels by wall time that came while the wall clock wasn't known to be right."""
        return self._late.refused

    def use(self, graph: TrainingGraph) -> bool:
        """Go on with another graph; False when its examples differ, so that a new Learner is needed."""
        same = _examples(self._graph.manifest) == _examples(graph.manifest)
        if same and graph is not self._graph:
            self._graph = graph
            self.trained_total = 0
            self.evaluation.model_changed()
        return same

    def observe(
        self,
        samples: Sequence[Sample],
        weights: Floats,
        state: Floats,
        published: Predict | None = None,
        version: int = -1,
    ) -> int:
        """Take in `samples`, predicting with `weights` [P] and `state` [S], or with `published` where it is given and
        gives something; returns how many examples they made. `version` is that of what predicts."""
        events: list[Event] = []
        for sample in samples:
            self._late.saw(sample)
            events += self._events(sample)
        windows = [window for window, y in events if y is None]
        if windows:
            self._version = version
            x = np.array([window.x for window in windows])
            output = None if published is None else published(x)
            if output is None:
                output = self._graph.predict(weights, x, state)
            for window, predicted in zip(windows, output, strict=True):
                window.output = predicted
        return self._take_in(events)

    def label(self, event: LabelEvent) -> LabelEvent | None:
        """A label came by itself: learn from the windows it is about.

        Returns it in monotonic seconds, None when its time can't be told.
        """
        placed = self._late.placed(event)
        if placed is not None and self._settings.target == "label":
            windows = self._late.labelled(placed)
            self._take_in([truth for window in windows for truth in self._truth(window, placed.label)])
        return placed

    def refill(self, samples: Sequence[Sample], *, relearn: bool = False) -> None:
        """Make examples of samples seen before a restart. Nothing is predicted, scored, or counted as new.

        `relearn`: the statistics are lost, and learned from these samples again.
        """
        for sample in samples:
            for window, y in self._events(sample, seen_before=True, relearn=relearn):
                if y is not None:
                    self.buffer.add(window.x, y, reservoir=False)

    def refilled(self) -> None:
        """All that was kept is there again: go on from it as from what was there before the restart."""
        if self._untrained is not None:
            self.trained_total = max(self.buffer.total - self._untrained, 0)
        if self.drifts and self._keep:
            self.buffer.forget(self._keep + self.since_drift)

    def state(self) -> dict[str, Any]:
        """What was learned besides weights and examples, for CBOR."""
        return {
            "examples": self._fingerprint(),
            "untrained": self.buffer.total - self.trained_total,
            "standardiser": None if self._standardiser is None else self._standardiser.state(),
            "evaluation": self.evaluation.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; from that of a model with other examples only the statistics are taken.

        Raises ValueError, and changes nothing, when it is damaged or of other channels.
        """
        try:
            evaluation, untrained = self._new_evaluation(), None
            if state["examples"] == self._fingerprint():
                evaluation.restore(state["evaluation"])
                untrained = count(state, "untrained", 2**63)
            if self._standardiser is not None:
                self._standardiser.restore(state["standardiser"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the learner's state lacks something: {error}") from error
        self.evaluation, self._untrained = evaluation, untrained

    def _events(self, sample: Sample, *, seen_before: bool = False, relearn: bool = False) -> list[Event]:
        """The windows that a sample completes, and the truths that it tells."""
        values, label = sample.values, sample.label
        if values.shape[1] != self._channels + (self._label_channel is not None):
            return []  # the sensor has come back with other channels
        if self._label_channel is not None:
            label = float(values[-1, self._label_channel])
            values = values[:, self._inputs]
        if sample.number != self._next_number:
            self._windower.clear()
        self._next_number = sample.number + 1
        statistics, scaling, ready = self._standardiser, None, True
        if statistics is not None and not self._raw:
            scaling, ready = statistics.scaling, statistics.count >= WARM_UP
        events = self._windower.add(values, sample, scaling, labelled=label is not None) if ready else []
        if statistics is not None and (relearn or not seen_before):
            statistics.update(values)
        if events and self._settings.target == "label":
            window = events[0][0]
            if label is None and not seen_before:
                label = self._late.label_of(sample)
                if label is None:
                    self._late.wait(window)
            if label is not None:
                events += self._truth(window, label)
        return events

    def _truth(self, window: Window, label: float) -> list[Event]:
        """The label of a window as the model wants it; none, and counted, when it is no class of this model."""
        y = self._labeller.label(label)
        self.unknown_labels += y is None
        return [] if y is None else [(window, y)]

    def _take_in(self, events: Sequence[Event]) -> int:
        """Announce windows and learn from truths, in their order; returns how many truths there were."""
        truths = [(window, y) for window, y in events if y is not None]
        errors: list[float] = []
        if truths:
            errors = self.evaluation.errors([window for window, _ in truths], np.array([y for _, y in truths]))
        scored = iter(errors)
        for window, y in events:
            if y is None:
                self.windows += 1
                window.guess = self.evaluation.guess(window)
                if self.listeners:
                    self._announce(window)
            else:
                self._learn(window, y, next(scored))
        return len(truths)

    def _learn(self, window: Window, y: Array, error: float) -> None:
        drifted = self.evaluation.add(window, y, error)
        self.buffer.add(window.x, y)
        if not drifted:
            return
        LOG.warning("drift: the errors have risen; %d examples are kept", self._keep or len(self.buffer))
        if self._keep:
            self.buffer.forget(self._keep)
            if self._standardiser is not None:
                self._standardiser.shorten(self._keep)

    def _announce(self, window: Window) -> None:
        """Tell the listeners what was predicted."""
        values = values_of(window, self._graph.manifest.loss, self._settings.target)
        if values is None:
            return
        evaluation, reading = self.evaluation, window.reading
        prediction = Prediction(
            number=self.windows,
            wall=reading.wall,
            synchronised=reading.synchronised,
            values=values,
            version=self._version,
            error=evaluation.error,
            anomaly=evaluation.probability,
            is_anomaly=evaluation.is_anomaly,
        )
        for listener in self.listeners:
            try:
                listener(prediction)
            except Exception as error:  # what others do with a prediction must not end the learning
                if not self._a_listener_failed:
                    LOG.warning("a listener of predictions fails: %s", error, exc_info=error)
                self._a_listener_failed = True

    def _fingerprint(self) -> str:
        """What the errors, and the statistics of the channels, are about."""
        settings = self._settings
        return repr((_examples(self._graph.manifest), settings.target, settings.horizon, self._channels))


def _examples(manifest: Manifest) -> tuple[object, ...]:
    """What a model's examples and their errors depend on."""
    inputs = manifest.input_shape, manifest.input_dtype, manifest.input_below
    return (*inputs, manifest.output_shape, manifest.label_shape, manifest.label_dtype, manifest.loss)
