"""window → predict, then learn: what happens to each sample, for one model."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edge_client.learning.prequential import LastTarget, MajorityClass, Prequential
from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.learning.standardise import Standardiser
from edge_client.learning.windowing import Example, Windower
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner as LearnerSettings
from pollen import scoring
from pollen.bundle import Floats, Manifest
from pollen.interpreter import Array, TrainingGraph

WARM_UP: Final = 10  # samples a channel's statistics need before they mean anything
# Counts a prediction that isn't a number as very wrong, without making the mean of the errors useless for ever.
_WORST_ERROR: Final = 1e3

Predict = Callable[[Array], Floats | None]  # x [n, …] -> y [n, …], None where it can't


class Learner:
    """Scores each example with the newest weights, then puts it into the replay buffer.

    `standardiser` belongs to the sensor and outlives models. Memory is fixed: window, buffer, a few sums.
    Raises BundleError when the model doesn't fit the sensor or the target.
    """

    def __init__(
        self, graph: TrainingGraph, settings: LearnerSettings, channels: int, standardiser: Standardiser
    ) -> None:
        self._graph = graph
        self._loss = graph.manifest.loss
        self._target = settings.target
        self._standardiser = standardiser if settings.standardise else None
        # Integers name rows of a table, so they are taken as the sensor gives them.
        self._raw = graph.manifest.input_dtype == "int32"
        self._windower = Windower(graph.manifest, settings.target, channels, settings.hop)
        self._majority = MajorityClass(max(self._windower.labeller.classes, 1))
        self._last_target = LastTarget()
        self._next_number = 0
        self.buffer = ReplayBuffer(graph.manifest, settings.replay_samples)
        self.prequential = Prequential()

    @property
    def unknown_labels(self) -> int:
        """Windows left out since their label is no class of this model."""
        return self._windower.unknown_labels

    @property
    def unknown_inputs(self) -> int:
        """Windows left out since a value isn't one of the integers that this model takes."""
        return self._windower.unknown_inputs

    def use(self, graph: TrainingGraph) -> bool:
        """Go on with another graph; False when its examples differ, so that a new Learner is needed."""
        same = _examples(self._graph.manifest) == _examples(graph.manifest)
        if same:
            self._graph = graph
        return same

    def observe(
        self, samples: Sequence[Sample], weights: Floats, state: Floats, published: Predict | None = None
    ) -> int:
        """Take in `samples`, predicting with `weights` [P] and `state` [S], or with `published` where it is given and
        gives something; returns how many examples they made."""
        examples: list[Example] = []
        for sample in samples:
            if sample.number != self._next_number:
                self._windower.clear()
            self._next_number = sample.number + 1
            values = sample.values
            if self._standardiser is not None:
                self._standardiser.update(values)
                if not self._raw:
                    if self._standardiser.count < WARM_UP:
                        continue
                    values = self._standardiser.transform(values)
            examples += self._windower.add(values, sample.label)
        if examples:
            self._score(examples, weights, state, published)
            for example in examples:
                self.buffer.add(example.x, example.y)
        return len(examples)

    def _score(self, examples: Sequence[Example], weights: Floats, state: Floats, published: Predict | None) -> None:
        y = np.stack([example.y for example in examples])
        x = np.stack([example.x for example in examples])
        output = None if published is None else published(x)
        if output is None:
            output = self._graph.predict(weights, x, state)
        errors = np.nan_to_num(scoring.errors(self._loss, output, y), nan=_WORST_ERROR, posinf=_WORST_ERROR)
        for index, example in enumerate(examples):
            baseline = self._baseline_error(example)
            if baseline is not None:
                self.prequential.add(float(min(errors[index], _WORST_ERROR)), baseline)

    def _baseline_error(self, example: Example) -> float | None:
        """The error of the guess that needs no learning; None while there is nothing to guess from."""
        if scoring.is_classification(self._loss):
            label = int(scoring.classes_of(self._loss, example.y[np.newaxis])[0])
            wrong = float(self._majority.guess != label)
            self._majority.add(label)
            return wrong
        guess = example.last if self._target == "next" else self._last_target.guess
        self._last_target.add(example.y)
        return None if guess is None else float(np.abs(example.y - guess).mean(dtype=np.float64))


def _examples(manifest: Manifest) -> tuple[object, ...]:
    """What a model's examples and their errors depend on."""
    inputs = manifest.input_shape, manifest.input_dtype, manifest.input_below
    return (*inputs, manifest.output_shape, manifest.label_shape, manifest.label_dtype, manifest.loss)
