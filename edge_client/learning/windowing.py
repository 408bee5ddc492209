"""From samples to examples: a window of the last T samples and what is to be predicted from it."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.settings import Target
from pollen.bundle import Manifest
from pollen.errors import BundleError

Floats = npt.NDArray[np.float32]

WHOLE: Final = 1e-3  # a reading this near to a whole number is that number


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """`x` as the model's input shape and dtype say, `y` as its label's; `last` is the window's last sample, [C]."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    last: Floats


def window_length(manifest: Manifest, channels: int) -> int:
    """T of a model whose input is [T, C] or, flat, [T * C]. BundleError when the sensor's channels don't fit."""
    shape = manifest.input_shape
    if len(shape) == 2 and shape[1] == channels:
        return shape[0]
    if len(shape) == 1 and shape[0] % channels == 0:
        return shape[0] // channels
    raise BundleError(
        f"model {manifest.model} takes {list(shape)}, but the sensor gives {channels} channels; "
        f"compile it for [T, {channels}] or flat [T * {channels}]"
    )


def check_target(manifest: Manifest, target: Target, channels: int) -> None:
    """BundleError when the model's labels aren't what `target` gives."""
    if target == "next" and (manifest.label_shape, manifest.label_dtype) != ((channels,), "float32"):
        raise BundleError(
            f"model {manifest.model} has labels {manifest.label_dtype} {list(manifest.label_shape)}; forecasting the "
            f'next reading needs float32 [{channels}] (learner.target = "next")'
        )
    if target == "label" and (len(manifest.label_shape) > 1 or len(manifest.output_shape) > 1):
        raise BundleError(
            f"model {manifest.model} gives {list(manifest.output_shape)} for labels {list(manifest.label_shape)}; "
            'one label a window is known (learner.target = "label")'
        )


class Labeller:
    """Turns a reading's label into the model's label array, as the loss wants it."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.classes = {
            "sparse_categorical_crossentropy": manifest.output_shape[-1] if manifest.output_shape else 1,
            "categorical_crossentropy": manifest.label_shape[-1] if manifest.label_shape else 1,
            "binary_crossentropy": 2,
        }.get(manifest.loss.name, 0)

    def label(self, value: float) -> npt.NDArray[Any] | None:
        """The label array of a class or target; None when it is no class of this model."""
        shape, dtype = self._manifest.label_shape, np.dtype(self._manifest.label_dtype)
        if self.classes and not (value == int(value) and 0 <= value < self.classes):
            return None
        if self._manifest.loss.name == "categorical_crossentropy":
            one_hot = np.zeros(shape, dtype)
            one_hot[int(value)] = 1
            return one_hot
        return np.full(shape, value, dtype)


class Windower:
    """Builds examples from samples of `channels` channels, for one model.

    Target "next": the window of T samples and the sample after it. Target "label": the window and the label of its
    last reading. Windows start `hop` samples apart (0: 1 apart, for labelled bursts T apart, aligned to the burst).
    A model of integers gets the values rounded; a window with one that is none of its integers is left out and counted.
    Memory: T + 1 samples.
    """

    def __init__(self, manifest: Manifest, target: Target, channels: int, hop: int = 0) -> None:
        self._length = window_length(manifest, channels)
        check_target(manifest, target, channels)
        self._shape = manifest.input_shape
        self._below = manifest.input_below
        self._target = target
        self._hop = hop
        self.labeller = Labeller(manifest)
        self._window = np.zeros((self._length, channels), np.float32)
        self._filled = 0
        self._wait = 0  # samples until the next window may be taken
        self.unknown_labels = 0
        self.unknown_inputs = 0

    def clear(self) -> None:
        """Forget the samples held: what comes next doesn't follow on them."""
        self._filled = 0
        self._wait = 0

    def add(self, values: Floats, label: float | int | None) -> list[Example]:
        """The examples that the samples `values` [k, C] complete; `label` belongs to the last of them."""
        if self._target == "next":
            return self._forecasts(values)
        return self._labelled(values, label)

    def _forecasts(self, values: Floats) -> list[Example]:
        examples = []
        for sample in values:
            if self._ready():
                examples += self._examples(sample.copy())
                self._wait = self._hop or 1
            self._push(sample)
        return examples

    def _labelled(self, values: Floats, label: float | int | None) -> list[Example]:
        burst = len(values) > 1
        if burst and len(values) % self._length == 0:
            self.clear()  # whole windows: stay aligned with the bursts
        for sample in values:
            self._push(sample)
        if label is None or not self._ready():
            return []
        self._wait = self._hop or (self._length if burst else 1)
        y = self.labeller.label(label)
        if y is None:
            self.unknown_labels += 1
            return []
        return self._examples(y)

    def _ready(self) -> bool:
        return self._filled == self._length and self._wait == 0

    def _push(self, sample: Floats) -> None:
        self._window[:-1] = self._window[1:]
        self._window[-1] = sample
        self._filled = min(self._filled + 1, self._length)
        self._wait = max(self._wait - 1, 0)

    def _examples(self, y: npt.NDArray[Any]) -> list[Example]:
        """The window as it is now and `y`, or nothing when it isn't an input of the model."""
        window: npt.NDArray[Any] = self._window.copy()
        last = window[-1]
        if self._below:
            whole = np.rint(window)
            # Negated, so that NaN is none either.
            if not (np.abs(window - whole).max() <= WHOLE and whole.min() >= 0 and whole.max() < self._below):
                self.unknown_inputs += 1
                return []
            window = whole.astype(np.int32)
        return [Example(window.reshape(self._shape), y, last)]
