"""A recording split over the devices of a demo: each replays its own subjects, and the server keeps a holdout.

Recordings are often sorted by class. So the holdout takes the last rows of each class of each subject: the last of
a subject alone would be one class, which any model that has just seen it gets right. And labelled classes are
replayed in a shuffled order: in long runs of one class, a model that repeats the class it trained on a moment ago
looks good while it has learned nothing. Windows that were neighbours in time are then learned and predicted side by
side, which flatters the prequential error; the held-out figures are the ones to quote. Forecasts and estimates are
replayed as recorded, because their baseline is the last value.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pollen.demo import csv_file, npz_file
from pollen.demo.recording import Array, DataError, Floats, Recording

HELD_OUT = 0.15
FEWEST_ROWS = 40  # a device with less has nothing to train on within a run


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One device's share, standardised: `x` [m, T, C] or [m, C], `y` [m] or None, and whose data it is."""

    x: Floats
    y: Array | None
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What a demo replays. `holdout`: the last 15 % of every subject's rows (of each class), one part a subject."""

    recording: Recording
    parts: tuple[Part, ...]
    holdout: tuple[Part, ...]


def read(path: Path) -> Recording:
    """Read `path`, a .npz or .csv file. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a .csv or .npz with --data")
    kind = path.suffix.lower()
    if kind == ".npz":
        return npz_file.read(path)
    if kind == ".csv":
        return csv_file.read(path)
    raise DataError(f"{path}: --data takes a .csv or .npz file")


def split(path: Path, recording: Recording, devices: int, seed: int) -> Split:
    """Share the subjects out over `devices`, and standardise by the training rows' statistics.

    Each channel (and a regression's target) is shifted to mean 0 and scaled to deviation 1. Subjects go,
    largest first, to the device with the fewest rows so far. `seed` is that of the shuffling. Raises DataError when
    there are too few subjects or rows.
    """
    subjects, counts = np.unique(recording.subject, return_counts=True)
    if len(subjects) < devices:
        raise DataError(
            f"{path}: {len(subjects)} subject{'s' * (len(subjects) > 1)}, fewer than {devices} devices; "
            f"use --devices {len(subjects)}" + (" at most" if len(subjects) > 1 else ", but a fleet needs 2")
        )
    held_out = _held_out(recording)
    generator = np.random.default_rng(seed)
    x, y = _standardised(recording, ~held_out)
    shares: list[list[int]] = [[] for _ in range(devices)]
    rows_of = [0] * devices
    for index in np.argsort(-counts, kind="stable"):
        device = rows_of.index(min(rows_of))
        shares[device].append(int(index))
        rows_of[device] += int(counts[index])

    def part(indices: list[int], mask: Array) -> Part:
        names = subjects[sorted(indices)]
        rows = np.concatenate([np.flatnonzero((recording.subject == name) & mask) for name in names])
        if recording.task == "classification":
            rows = generator.permutation(rows)
        return Part(x[rows], None if y is None else y[rows], tuple(map(str, names)))

    parts = tuple(part(share, ~held_out) for share in shares)
    for share in parts:
        if len(share.x) < FEWEST_ROWS:
            raise DataError(
                f"{path}: subject {', '.join(share.subjects)} has {len(share.x)} rows to learn from, "
                f"a device needs {FEWEST_ROWS}; use fewer --devices or more data"
            )
    return Split(recording, parts, tuple(part([index], held_out) for index in range(len(subjects))))


def _held_out(recording: Recording) -> Array:
    """Which rows are held out, bool [n]."""
    held_out = np.zeros(len(recording.x), bool)
    classes = recording.y if recording.y is not None and recording.task == "classification" else None
    for subject in np.unique(recording.subject):
        of_subject = recording.subject == subject
        for group in [of_subject] if classes is None else [of_subject & (classes == y) for y in np.unique(classes)]:
            rows = np.flatnonzero(group)
            held_out[rows[len(rows) - int(len(rows) * HELD_OUT) :]] = True
    return held_out


def _standardised(recording: Recording, rows: Array) -> tuple[Floats, Array | None]:
    channels = recording.x[rows].reshape(-1, recording.x.shape[-1]).astype(np.float64)
    mean, deviation = channels.mean(axis=0), channels.std(axis=0)
    deviation[deviation == 0] = 1.0
    x = ((recording.x - mean) / deviation).astype(np.float32)
    if recording.y is None or recording.task == "classification":
        return x, recording.y
    target = recording.y[rows].astype(np.float64)
    return x, ((recording.y - target.mean()) / (target.std() or 1.0)).astype(np.float32)


def write_part(path: Path, part: Part, channels: tuple[str, ...]) -> None:
    """Write what one device replays: X, y where there are labels, and the channels' names."""
    arrays: dict[str, Array] = {"X": part.x, "channels": np.array(channels)}
    if part.y is not None:
        arrays["y"] = part.y
    np.savez(path, **arrays)  # type: ignore[arg-type]


def holdout_examples(data: Split, window: int) -> tuple[Floats, Array]:
    """The holdout as model inputs and answers: x [m, T, C] or [m, C], y [m], [m, 1] or, for a forecast, [m, C].

    For a forecast each example is `window` readings of one subject and the reading after them.
    """
    if data.recording.task != "forecast":
        x = np.concatenate([part.x for part in data.holdout])
        y = np.concatenate([part.y for part in data.holdout if part.y is not None])
        return x, y if data.recording.task == "classification" else y[:, None]
    inputs, answers = [], []
    for part in data.holdout:
        for start in range(len(part.x) - window):
            inputs.append(part.x[start : start + window])
            answers.append(part.x[start + window])
    if not inputs:
        raise DataError(f"the held-out rows of every subject are fewer than {window + 1}; give more data")
    return np.stack(inputs), np.stack(answers)
