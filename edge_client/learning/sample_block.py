"""Readings as one block of bytes: what the stream store writes to the card in one go."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from edge_client.sensors.sampling import Sample

# A reading in 31 bytes, then the values of all of them. `label` means something where `has_label` is set.
_READING: Final = np.dtype(
    [
        ("number", "<i8"),
        ("monotonic", "<f8"),
        ("wall", "<f8"),
        ("count", "<u4"),
        ("synchronised", "u1"),
        ("has_label", "u1"),
        ("whole_label", "u1"),
    ]
)
_HEAD: Final = np.dtype([("readings", "<u4"), ("channels", "<u4"), ("labels", "<u4")])


def encode(samples: Sequence[Sample]) -> bytes:
    """At least one reading, all of the same channels, as bytes: head, readings, labels, values as float32."""
    readings = np.zeros(len(samples), _READING)
    labels = []
    for row, sample in enumerate(samples):
        label = sample.label
        readings[row] = (
            sample.number,
            sample.monotonic,
            sample.wall,
            len(sample.values),
            sample.synchronised,
            label is not None,
            isinstance(label, int),
        )
        if label is not None:
            labels.append(float(label))
    values = np.concatenate([sample.values for sample in samples], dtype="<f4")
    head = np.array((len(samples), values.shape[1], len(labels)), _HEAD)
    return head.tobytes() + readings.tobytes() + np.array(labels, "<f8").tobytes() + values.tobytes()


class Block:
    """A decoded block: `readings` as columns, `labels` [n] with NaN for none, `values` [sum of counts, C].

    Raises ValueError when `payload` is none.
    """

    def __init__(self, payload: bytes) -> None:
        head = np.frombuffer(payload, _HEAD, 1)[0]
        count, channels, labels = int(head["readings"]), int(head["channels"]), int(head["labels"])
        at = _HEAD.itemsize
        self.readings = np.frombuffer(payload, _READING, count, at).copy()
        at += self.readings.nbytes
        self.labels = np.full(count, np.nan)
        has_label = self.readings["has_label"] != 0
        if labels != int(has_label.sum()):
            raise ValueError("a block whose labels aren't those of its readings")
        self.labels[has_label] = np.frombuffer(payload, "<f8", labels, at)
        self.values = np.frombuffer(payload, "<f4", offset=at + 8 * labels).reshape(-1, max(channels, 1))
        if len(self.values) != int(self.readings["count"].sum()) or not np.isfinite(self.values).all():
            raise ValueError("a block whose values aren't those of its readings")

    @property
    def span(self) -> tuple[float, float]:
        """The earliest and the latest monotonic time of its readings."""
        times = self.readings["monotonic"]
        return (float(times.min()), float(times.max())) if len(times) else (math.inf, -math.inf)

    def give_label(self, label: float, first: float, last: float) -> None:
        """A label that came late, for the readings whose monotonic time is in [first, last]."""
        times = self.readings["monotonic"]
        meant = (times >= first) & (times <= last)
        self.labels[meant] = label
        self.readings["whole_label"][meant] = label == int(label)

    def samples(self, *, number_shift: int, time_shift: float) -> Iterator[Sample]:
        """The readings again, with numbers and monotonic times shifted."""
        end = 0
        for reading, label in zip(self.readings, self.labels.tolist(), strict=True):
            start, end = end, end + int(reading["count"])
            yield Sample(
                int(reading["number"]) + number_shift,
                float(reading["monotonic"]) + time_shift,
                float(reading["wall"]),
                np.asarray(self.values[start:end], np.float32),
                None if math.isnan(label) else int(label) if reading["whole_label"] else label,
                synchronised=bool(reading["synchronised"]),
            )
