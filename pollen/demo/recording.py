"""Recorded sensor data: what `--data FILE` holds, as arrays, whichever kind of file it came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pollen.errors import PollenError

Task = Literal["classification", "regression", "forecast"]
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class DataError(PollenError):
    """A recording can't be used; the text names the file and the array or column."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Sensor data of several subjects, in the order it was recorded.

    `x`: float32 [n, T, C] (windows of T readings) or [n, C] (readings), in the sensors' units. `y`: int32 [n]
    (a class, 0 to K - 1), float32 [n] (a value to estimate) or None (the next reading is forecast).
    `subject`: text [n], whose data each row is. `classes`: the K names. `skipped`: rows left out because a
    value was missing or not finite.
    """

    x: Floats
    y: Array | None
    subject: Array
    channels: tuple[str, ...]
    classes: tuple[str, ...] = ()
    skipped: int = 0

    @property
    def task(self) -> Task:
        """What a model is to learn from this."""
        if self.y is None:
            return "forecast"
        return "classification" if self.classes else "regression"


def finished(
    path: Path,
    x: Floats,
    labels: Array | None,
    *,
    subject: Array,
    channels: tuple[str, ...],
    class_names: tuple[str, ...] = (),
) -> Recording:
    """Drop rows that aren't finite, number the classes, and lay windows without labels end to end.

    `labels` of an integer or text dtype are classes, of a float dtype values; `class_names` names integer
    labels by position. Raises DataError.
    """
    usable = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if labels is not None and labels.dtype.kind == "f":
        usable &= np.isfinite(labels)
    skipped = int(len(x) - usable.sum())
    x, subject = x[usable], subject[usable].astype(str)
    labels = None if labels is None else labels[usable]
    if len(x) == 0:
        raise DataError(f"{path}: no usable row in it")
    if labels is None:
        if x.ndim == 3:
            subject = np.repeat(subject, x.shape[1])
            x = x.reshape(-1, x.shape[2])
        return Recording(x, None, subject, channels, (), skipped)
    if labels.dtype.kind == "f":
        return Recording(x, labels.astype(np.float32), subject, channels, (), skipped)
    values, numbers = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise DataError(f"{path}: every label is {values[0]!s}; classification needs at least two classes")
    if len(values) > 1000:
        raise DataError(
            f"{path}: {len(values)} different labels; for numbers to estimate call the column target (CSV) "
            "or give y a float dtype (NPZ)"
        )
    named = labels.dtype.kind in "iu" and values[0] >= 0 and values[-1] < len(class_names)
    classes = tuple(class_names[value] if named else str(value) for value in values)
    return Recording(x, numbers.reshape(-1).astype(np.int32), subject, channels, classes, skipped)
