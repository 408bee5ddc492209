"""The NAB streams, and what needs no device: persistence, recursive least squares, a naive detector of anomalies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

DATA: Final = Path(__file__).parents[2] / "shared/data/nab-streams/public.npz"
PROBATION: Final = 0.15  # the share of a stream that isn't scored, as in NAB
LAGS: Final = 12
FORGETTING: Final = 0.999
DEVIATIONS: Final = 3.0
MEMORY: Final = 2000  # the naive detector's, as [anomaly] memory
WEEK_S: Final = 7 * 86_400.0

# The data's README, errors after probation: persistence, recursive least squares.
PUBLISHED: Final = {
    "machine_temperature_system_failure": (0.850, 0.783),
    "ec2_cpu_utilization_24ae8d": (0.0469, 0.0298),
    "ec2_cpu_utilization_5f5533": (3.54, 1.34),
    "speed_6005": (7.97, 6.37),
    "nyc_taxi": (1259.0, 812.0),
}


@dataclass(frozen=True, eq=False)
class Stream:
    """`values` [n] in their order of arrival, at `times` [n] in epoch seconds; `windows` [k, 2]: labelled anomalies."""

    name: str
    values: Doubles
    times: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]

    @property
    def first_scored(self) -> int:
        """The first value after probation."""
        return int(PROBATION * len(self.values))

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """Which values lie in an anomaly window, [n]."""
        return np.any([(first <= self.times) & (self.times <= last) for first, last in self.windows], axis=0)

    @property
    def weeks_outside(self) -> float:
        """How long the scored stream outside anomaly windows is, by its median step."""
        scored = ~self.inside[self.first_scored :]
        return float(scored.sum() * np.median(np.diff(self.times)) / WEEK_S)


def load(path: Path = DATA) -> list[Stream]:
    """All streams of the archive `path`. SystemExit when it isn't there."""
    if not path.is_file():
        raise SystemExit(f"error: {path} isn't here; give the folder of NAB's public.npz with --data")
    archive = np.load(path, allow_pickle=False)
    return [
        Stream(str(name), archive[f"v__{name}"], archive[f"t__{name}"], archive[f"windows__{name}"])
        for name in archive["streams"]
    ]


def persistence(values: Doubles) -> Doubles:
    """Each value's forecast is the one before it; [n], NaN where there is none."""
    return np.concatenate([[np.nan], values[:-1]])


def recursive_least_squares(values: Doubles) -> Doubles:
    """One-step forecasts [n]: the increment from the last 12 values, least squares with a forgetting factor of 0.999.

    The values are taken relative to their mean and deviation so far. Haykin, Adaptive Filter Theory, section 10.3.
    """
    count = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / count
    deviation = np.sqrt(np.maximum(np.cumsum(np.square(values - mean[-1])) / count - np.square(mean - mean[-1]), 1e-18))
    forecasts = np.full(len(values), np.nan)
    inverse, weights = np.eye(LAGS), np.zeros(LAGS)
    for now in range(LAGS + 1, len(values)):
        last = now - 1
        x = (values[now - LAGS : now][::-1] - mean[last]) / deviation[last]
        forecast = weights @ x
        forecasts[now] = values[last] + forecast * deviation[last]
        spread = inverse @ x
        gain = spread / (FORGETTING + x @ spread)
        weights = weights + gain * ((values[now] - values[last]) / deviation[last] - forecast)
        inverse = (inverse - np.outer(gain, spread)) / FORGETTING
    return forecasts


def naive_alarms(values: Doubles) -> list[int]:
    """Where values go further than three standard deviations from their mean over about the last 2000.

    As the device's, an alarm lasts until the value is well within again (two deviations).
    """
    alarms: list[int] = []
    mean = variance = 0.0
    within = False
    for place, value in enumerate(values.tolist()):
        distance = abs(value - mean)
        if place >= 100:
            limit = (DEVIATIONS - within) * math.sqrt(variance)
            if distance > limit and not within:
                alarms.append(place)
            within = distance > limit
        share = 1 / (min(place, MEMORY - 1) + 1)
        mean += share * (value - mean)
        variance = (1 - share) * (variance + share * distance**2)
    return alarms


def mean_absolute_error(stream: Stream, forecasts: Doubles) -> float:
    """Of the forecasts [n] after probation, in the stream's own unit."""
    first = stream.first_scored
    return float(np.abs(stream.values - forecasts)[first:].mean())


@dataclass(frozen=True)
class Alarms:
    """What a detector's alarms come to: labelled windows with one inside, alarms outside; after probation."""

    found: int
    windows: int
    false: int
    weeks: float
    by_chance: float  # windows that as many alarms as were false, anywhere in the stream, would have found

    @property
    def false_a_week(self) -> float:
        """False alarms per week of stream outside labelled windows."""
        return self.false / self.weeks


def judge(stream: Stream, alarms: Sequence[int]) -> Alarms:
    """Compare alarms (places in the stream) with the labels."""
    scored = np.array([place for place in alarms if place >= stream.first_scored], np.int64)
    times, outside = stream.times[scored], ~stream.inside[scored]
    hit = [bool(((first <= times) & (times <= last)).any()) for first, last in stream.windows]
    rate = outside.sum() / stream.weeks_outside
    lengths = (stream.windows[:, 1] - stream.windows[:, 0]) / WEEK_S
    chance = float((1 - np.exp(-rate * lengths)).sum())
    return Alarms(sum(hit), len(hit), int(outside.sum()), stream.weeks_outside, chance)


def total(parts: Sequence[Alarms]) -> Alarms:
    """Several streams together."""
    return Alarms(
        sum(part.found for part in parts),
        sum(part.windows for part in parts),
        sum(part.false for part in parts),
        sum(part.weeks for part in parts),
        sum(part.by_chance for part in parts),
    )
