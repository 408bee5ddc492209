"""From samples to windows of the last T samples, and to the truth about them."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.learning.standardise import Scaling
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner as LearnerSettings
from edge_client.settings import Target
from pollen.bundle import Manifest
from pollen.errors import BundleError

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

WHOLE: Final = 1e-3  # a reading this near to a whole number is that number
_LARGEST: Final = {"f": float(np.finfo(np.float32).max), "i": 2**31 - 1}  # label of either kind
_SPARE: Final = 64  # samples that are appended before the window is moved to the front of its array


@dataclass(slots=True, eq=False)
class Window:
    """A complete window: `x` as the model's input shape and dtype say, `last` [C] its last sample, as in `x`.

    `reading` is the sample that completed it; `scaling` what its values were scaled by, None for none. `output` is
    what the model predicted, `guess` what the baseline did, both set when it is predicted.
    """

    x: Array
    last: Floats
    reading: Sample
    scaling: Scaling | None
    output: Floats | None = None
    guess: Floats | int | None = None


Event = tuple[Window, Array | None]  # a window that is complete (None), or the truth y about one


def window_length(manifest: Manifest, channels: int) -> int:
    """T of a model whose input is [T, C] or, flat, [T * C]. BundleError when the sensor's channels don't fit."""
    shape = manifest.input_shape
    if channels and len(shape) == 2 and shape[1] == channels:
        return shape[0]
    if channels and len(shape) == 1 and shape[0] % channels == 0:
        return shape[0] // channels
    raise BundleError(
        f"model {manifest.model} takes {list(shape)}, but the sensor gives {channels} channels; "
        f"compile it for [T, {channels}] or flat [T * {channels}]"
    )


def check_target(manifest: Manifest, target: Target, channels: int) -> None:
    """BundleError when the model's labels aren't what `target` gives."""
    if target == "label":
        if len(manifest.label_shape) > 1 or len(manifest.output_shape) > 1:
            raise BundleError(
                f"model {manifest.model} gives {list(manifest.output_shape)} for labels {list(manifest.label_shape)}; "
                'one label a window is known (learner.target = "label")'
            )
        return
    length = window_length(manifest, channels)
    shapes: list[tuple[int, ...]] = [(channels,)]
    what = "forecasting a reading"
    if target == "self":
        what, shapes = "rebuilding the window", [(length, channels), (length * channels,)]
    if manifest.label_shape not in shapes or manifest.label_dtype != "float32":
        raise BundleError(
            f"model {manifest.model} has labels {manifest.label_dtype} {list(manifest.label_shape)}; {what} needs "
            f'float32 {" or ".join(str(list(shape)) for shape in shapes)} (learner.target = "{target}")'
        )


class Labeller:
    """Turns a class number or target into the model's label array, as the loss wants it."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.classes = {
            "sparse_categorical_crossentropy": manifest.output_shape[-1] if manifest.output_shape else 1,
            "categorical_crossentropy": manifest.label_shape[-1] if manifest.label_shape else 1,
            "binary_crossentropy": 2,
        }.get(manifest.loss.name, 0)

    def label(self, value: float) -> Array | None:
        """The label array of a class or target; None when it is no class of this model, or no number it can hold."""
        shape, dtype = self._manifest.label_shape, np.dtype(self._manifest.label_dtype)
        whole = bool(self.classes) or dtype.kind == "i"
        least, most = (0, self.classes - 1) if self.classes else (-_LARGEST[dtype.kind], _LARGEST[dtype.kind])
        # Negated, so that NaN is none either.
        if not least <= value <= most or (whole and value != int(value)):
            return None
        if self._manifest.loss.name == "categorical_crossentropy":
            one_hot = np.zeros(shape, dtype)
            one_hot[int(value)] = 1
            return one_hot
        return np.full(shape, value, dtype)


class Windower:
    """Builds windows from samples of `channels` channels, for one model.

    Windows start `hop` samples apart (0: 1 apart; for target "label" a burst's window ends with the burst, T samples
    after the last). Target "next": the truth about a window is the sample `horizon` samples after it; target "self":
    the window itself. For target "label" the labels are another's affair; readings that have one give a window `hop`
    samples after the last that had one. A model of integers gets the values rounded; a window with one that is none of
    its integers is left out and counted. Memory: 2 T + 64 samples, and with target "next" `horizon` windows.
    """

    def __init__(self, manifest: Manifest, settings: LearnerSettings, channels: int) -> None:
        self._length = window_length(manifest, channels)
        check_target(manifest, settings.target, channels)
        self._manifest = manifest
        self._target = settings.target
        self._hop = settings.hop
        self._horizon = settings.horizon
        self._samples = np.zeros((2 * self._length + _SPARE, channels), np.float32)
        self._end = 0  # the newest samples are those before it
        self._filled = 0  # of them, at most T
        self._wait = 0  # samples until the next window
        self._wait_labelled = 0  # until the next that has its label with it
        self._clock = 0  # counts samples
        self._pending: deque[tuple[int, Window]] = deque()  # when its truth comes, for target "next"
        self.unknown_inputs = 0

    def clear(self) -> None:
        """Forget the samples held, and the windows whose truth would have come: what follows doesn't follow on."""
        self._filled = self._wait = self._wait_labelled = 0
        self._pending.clear()

    def add(self, values: Floats, reading: Sample, scaling: Scaling | None, *, labelled: bool = False) -> list[Event]:
        """The windows that the samples `values` [k, C] complete, and the truth they are about others, in their order.

        `reading`: where they come from; `labelled`: whether it has a label, of its last sample.
        """
        if self._target == "label":
            return self._add_reading(values, reading, scaling, labelled=labelled)
        events: list[Event] = []
        for row in range(len(values)):
            sample = values[row : row + 1]
            self._push(sample)
            while self._pending and self._pending[0][0] <= self._clock:
                window = self._pending.popleft()[1]
                truth = sample[0] if window.scaling is None else window.scaling.apply(sample[0])
                events.append((window, truth.reshape(self._manifest.label_shape)))
            if self._filled < self._length or self._wait:
                continue
            self._wait = self._hop or 1
            found = self._window(reading, scaling)
            if found is None:
                continue
            events.append((found, None))
            if self._target == "self":
                events.append((found, found.x.astype(np.float32).reshape(self._manifest.label_shape)))
            else:
                self._pending.append((self._clock + self._horizon, found))
        return events

    def _add_reading(self, values: Floats, reading: Sample, scaling: Scaling | None, *, labelled: bool) -> list[Event]:
        burst = len(values) > 1
        if burst and len(values) % self._length == 0:
            self.clear()  # whole windows: stay aligned with the bursts
        self._push(values)
        due = self._wait == 0 or (labelled and self._wait_labelled == 0)
        if not due or self._filled < self._length:
            return []
        self._wait = self._hop or (self._length if burst else 1)
        if labelled:
            self._wait_labelled = self._wait
        window = self._window(reading, scaling)
        return [] if window is None else [(window, None)]

    def _push(self, values: Floats) -> None:
        count = len(values)
        values = values[-self._length :]
        if self._end + len(values) > len(self._samples):
            self._samples[: self._length] = self._samples[self._end - self._length : self._end]
            self._end = self._length
        self._samples[self._end : self._end + len(values)] = values
        self._end += len(values)
        self._filled = min(self._filled + count, self._length)
        self._wait = max(self._wait - count, 0)
        self._wait_labelled = max(self._wait_labelled - count, 0)
        self._clock += count

    def _window(self, reading: Sample, scaling: Scaling | None) -> Window | None:
        """The newest T samples as a window, a copy; None when they aren't an input of the model."""
        values: Array = self._samples[self._end - self._length : self._end]
        below = self._manifest.input_below
        if below:
            whole = np.rint(values)
            # Negated, so that NaN is none either.
            if not (np.abs(values - whole).max() <= WHOLE and whole.min() >= 0 and whole.max() < below):
                self.unknown_inputs += 1
                return None
            last, values = values[-1].copy(), whole.astype(np.int32)
        else:
            values = values.copy() if scaling is None else scaling.apply(values)
            last = values[-1]
        return Window(values.reshape(self._manifest.input_shape), last, reading, scaling)
