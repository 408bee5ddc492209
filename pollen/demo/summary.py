"""The figures at the end of a demo, computed from the server's history and what was seen on the broker."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pollen.demo.history import Event


@dataclass(frozen=True, slots=True)
class Staleness:
    """How many versions the model had moved on when an update was merged, over all merges."""

    median: float
    p90: int
    largest: int
    histogram: dict[str, int]


@dataclass(frozen=True, slots=True)
class Learning:
    """Prequential error (each reading predicted before it was learned from) against the baseline's.

    Mean over the devices of the error each reported with its first and with its last merged update. The
    baseline is persistence, or for classification the most frequent class so far.
    """

    error_first: float
    baseline_first: float
    error_last: float
    baseline_last: float

    @property
    def ratio_first(self) -> float:
        """Error over baseline at the start; below 1 the model beats the baseline."""
        return self.error_first / self.baseline_first if self.baseline_first else math.nan

    @property
    def ratio_last(self) -> float:
        """Error over baseline at the end."""
        return self.error_last / self.baseline_last if self.baseline_last else math.nan


@dataclass(frozen=True, slots=True)
class CutStory:
    """What happened to the device whose connection was cut; times in seconds of the run."""

    device: str
    cut_s: float
    restored_s: float | None = None
    merged_s: float | None = None
    staleness: int | None = None
    weight: float | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """All of it; `rejections` by reason, bytes of payload by device, peak RSS in bytes by role."""

    seconds: float
    version: int
    merges: int
    updates_per_s: float
    rejections: dict[str, int]
    staleness: Staleness | None
    learning: Learning | None
    evaluation_first: dict[str, float] | None
    evaluation_last: dict[str, float] | None
    cut: CutStory | None
    sent_bytes: dict[str, int] = field(default_factory=dict)
    received_bytes: dict[str, int] = field(default_factory=dict)
    peak_rss_bytes: dict[str, int] = field(default_factory=dict)


def staleness(values: Sequence[int]) -> Staleness | None:
    """The distribution of `values`; None when there are none. The histogram's classes double: 0, 1, 2-3, 4-7, …"""
    if not values:
        return None
    ordered = sorted(values)
    classes = Counter(value.bit_length() for value in ordered)
    histogram = {_class_name(bits): classes[bits] for bits in range(max(classes) + 1)}
    p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return Staleness(statistics.median(ordered), p90, ordered[-1], histogram)


def _class_name(bits: int) -> str:
    low, high = (0, 0) if bits == 0 else (2 ** (bits - 1), 2**bits - 1)
    return str(low) if low == high else f"{low}-{high}"


def learning(merges: Sequence[Event]) -> Learning | None:
    """First and last reported errors; None when no merge reported any."""
    first: dict[str, tuple[float, float]] = {}
    last: dict[str, tuple[float, float]] = {}
    for merge in merges:
        metrics = merge["metrics"]
        if "prequential_error" in metrics and "baseline_error" in metrics:
            pair = (metrics["prequential_error"], metrics["baseline_error"])
            first.setdefault(merge["device"], pair)
            last[merge["device"]] = pair
    if not first:
        return None
    return Learning(
        statistics.fmean(error for error, _ in first.values()),
        statistics.fmean(baseline for _, baseline in first.values()),
        statistics.fmean(error for error, _ in last.values()),
        statistics.fmean(baseline for _, baseline in last.values()),
    )


def cut_story(
    device: str, cut_at: float, restored_at: float | None, began_at: float, merges: Sequence[Event]
) -> CutStory:
    """Follow the cut device: all times in seconds since 1970, as in the history's `time`.

    Its return is the first of its updates merged after the connection was restored.
    """
    story = CutStory(device, cut_at - began_at, None if restored_at is None else restored_at - began_at)
    if restored_at is None:
        return story
    for merge in merges:
        if merge["device"] == device and merge["time"] >= restored_at:
            return CutStory(
                device,
                story.cut_s,
                story.restored_s,
                merge["time"] - began_at,
                merge["staleness"],
                merge["weight"],
                merge["version"],
            )
    return story


def summarise(
    events: Sequence[Event],
    *,
    seconds: float,
    vitals: Mapping[str, Mapping[str, float]],
    peak_rss_bytes: Mapping[str, int],
    cut: CutStory | None,
) -> Summary:
    """Put the figures together; `seconds` is how long the fleet learned, `vitals` each device's last."""
    merges = [event for event in events if event["event"] == "merge"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    scores = [{"loss": event["loss"], **event["metrics"]} for event in evaluations]
    rejections: Counter[str] = Counter()
    for event in events:
        if event["event"] == "rejection":
            rejections[event["reason"]] += 1 + event.get("suppressed", 0)
    return Summary(
        seconds=seconds,
        version=merges[-1]["version"] if merges else 0,
        merges=len(merges),
        updates_per_s=len(merges) / seconds if seconds > 0 else 0.0,
        rejections=dict(rejections),
        staleness=staleness([merge["staleness"] for merge in merges]),
        learning=learning(merges),
        evaluation_first=scores[0] if scores else None,
        evaluation_last=scores[-1] if scores else None,
        cut=cut,
        sent_bytes={name: int(values.get("sent_bytes", 0)) for name, values in vitals.items()},
        received_bytes={name: int(values.get("received_bytes", 0)) for name, values in vitals.items()},
        peak_rss_bytes=dict(peak_rss_bytes),
    )
