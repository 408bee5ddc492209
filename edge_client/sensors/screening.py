"""The faults of real sensors, told from data: what a reading is worth before anybody learns from it."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.sensors import Channel, Reading
from pollen.errors import SensorError

Floats = npt.NDArray[np.float32]

LARGEST_BURST: Final = 2**16  # values in one reading
_LARGEST: Final = float(np.finfo(np.float32).max)
_STEPS: Final = 15  # steps whose median is the usual one
_FEWEST_STEPS: Final = 5
_GAP_STEPS: Final = 3.0


@dataclass(slots=True)
class Counters:
    """What a sensor has done since the start, for vitals.

    `skipped`: samples left out, since a channel had no usable value for too long; `held`: values replaced by the
    channel's last good one; `duplicates`: readings delivered twice; `clock_faults`: times of the sensor that stood
    still or went backwards; `gaps`: interruptions, whatever their cause; `dropped`: readings the learner came too late
    for; `failures`: errors after which the sensor was opened again; `stuck_channels`: those stuck now;
    `largest_jitter_s`: how late a read began at most, since it was last set to 0.
    """

    skipped: int = 0
    held: int = 0
    duplicates: int = 0
    clock_faults: int = 0
    gaps: int = 0
    dropped: int = 0
    failures: int = 0
    stuck_channels: int = 0
    largest_jitter_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """A reading that can be used: `values` float32 [k, C], finite and in range; `follows`: nothing is missing between
    it and the one before."""

    values: Floats
    label: float | int | None
    time: float | None
    follows: bool


class Screening:
    """Looks at each reading of one opened sensor.

    A value that is not finite, or out of its channel's range, is replaced by the channel's last good one, for at most
    `hold_readings` samples running; then readings are skipped until the channel has a value again. Spikes within the
    range are data. A reading with the time and the values of the one before was delivered twice. There is a gap
    where readings were skipped, and where a step in time is more than three times the usual one: in the sensor's own
    time where it has one, else in the time of arrival, whose usual step is at least `period_s`. A channel without
    another value for `stuck_s` seconds (0: never) is stuck, which is only reported.

    `missing` and `stuck` name the channels for whose sake readings are skipped now, and those that are stuck.
    """

    def __init__(
        self, channels: tuple[Channel, ...], *, period_s: float, hold_readings: int, stuck_s: float, counters: Counters
    ) -> None:
        self.missing: tuple[str, ...] = ()
        self.stuck: tuple[str, ...] = ()
        self._channels = channels
        self._low, self._high = (_bounds(channels, name) for name in ("low", "high"))
        self._hold = hold_readings
        self._stuck_s = stuck_s
        self._counters = counters
        self._raw: Floats | None = None  # the reading before, as it came
        self._time: float | None = None
        self._earlier: float | None = None  # the time before a step back
        self._arrived: float | None = None
        self._times = _Steps(0.0)
        self._arrivals = _Steps(period_s)
        self._follows = True
        self._good = np.full(len(channels), np.nan, np.float32)
        self._faults = np.zeros(len(channels), np.int64)  # samples running without a usable value
        self._value = self._good
        self._changed_at = np.zeros(len(channels))

    def screen(self, reading: Reading, now: float) -> Screened | None:
        """The reading that came at `now` (monotonic seconds), None when it is to be left out.

        Raises SensorError for what is no reading of these channels.
        """
        raw = self._values(reading.values)
        label, time = _number(reading.label, "label"), _number(reading.time, "time")
        time = None if time is None else float(time)
        if label is not None and abs(label) > _LARGEST:
            label = None
        if time is not None and time == self._time and self._raw is not None and _equal(raw, self._raw):
            self._counters.duplicates += 1
            self._arrived = now
            return None
        if not self._in_step(time, len(raw), now):
            self._follows = False
            self._good = np.full(len(self._channels), np.nan, np.float32)
        self._raw, self._time, self._arrived = raw, time, now
        if self._stuck_s:
            self._look_for_stuck(raw, now)
        values = self._held(raw)
        if values is None:
            self._follows = False
            self._counters.skipped += len(raw)
            return None
        follows, self._follows = self._follows, True
        return Screened(values, label, time, follows)

    def _values(self, values: Any) -> Floats:
        """A copy of a reading's values as float32 [k, C]: a sensor may use its array again."""
        shape = np.shape(values)
        if len(shape) != 2 or shape[1] != len(self._channels) or shape[0] == 0:
            raise SensorError(f"a reading of shape {shape} from {len(self._channels)} channels; want [k, C]")
        if shape[0] * shape[1] > LARGEST_BURST:
            raise SensorError(f"a reading of {shape[0]} x {shape[1]} values; at most {LARGEST_BURST} at once")
        if np.iscomplexobj(values):
            raise SensorError("a reading of complex numbers; give real ones")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(values, np.float32)

    def _in_step(self, time: float | None, samples: int, now: float) -> bool:
        """Whether a reading of `samples` samples follows on the one before."""
        late = self._arrived is not None and self._arrivals.is_gap(now - self._arrived, 1)
        if time is None or self._time is None:
            return not late
        if time <= self._time:  # the order of arrival counts
            self._counters.clock_faults += 1
            self._earlier = self._time
            return not late
        earlier, self._earlier = self._earlier, None
        if not self._times.is_gap(time - self._time, samples):
            return True
        # After a single stamp from the past, the clock is where it was.
        return earlier is not None and earlier < time and not self._times.is_gap(time - earlier, samples)

    def _held(self, raw: Floats) -> Floats | None:
        """`raw` with faults replaced by the last good values; None when one has lasted too long."""
        fine = (raw >= self._low) & (raw <= self._high)  # NaN is neither
        if fine.all():
            self._faults[:] = 0
            self._good = raw[-1].copy()
            self.missing = ()
            return raw
        rows = np.arange(len(raw))[:, np.newaxis]
        newest = np.maximum.accumulate(np.where(fine, rows, -1), axis=0)  # row of each channel's last good value
        values = np.where(newest >= 0, np.take_along_axis(raw, np.maximum(newest, 0), axis=0), self._good)
        running = np.where(newest >= 0, rows - newest, self._faults + rows + 1)
        self._faults, self._good = running[-1], values[-1].copy()
        self.missing = self._names(self._faults > self._hold)
        if running.max() > self._hold or np.isnan(values).any():
            return None
        self._counters.held += int((~fine).sum())
        return values

    def _look_for_stuck(self, raw: Floats, now: float) -> None:
        known = np.isfinite(raw)
        self._changed_at[(known & (raw != self._value)).any(axis=0)] = now
        self._value = np.where(known[-1], raw[-1], self._value)
        self.stuck = self._names(np.isfinite(self._value) & (now - self._changed_at >= self._stuck_s))
        self._counters.stuck_channels = len(self.stuck)

    def _names(self, which: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        if not which.any():
            return ()
        return tuple(channel.name for channel, there in zip(self._channels, which, strict=True) if there)


class _Steps:
    """The usual step between samples: the median of the last ones, and at least `least`."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._steps: deque[float] = deque(maxlen=_STEPS)

    def is_gap(self, step: float, samples: int) -> bool:
        """Whether `step`, from the last sample of a reading to the last of the next, which has `samples`, is too long.

        Bursts are given half as long again, since their arrival is often what is stamped.
        """
        usual = self._least
        if len(self._steps) >= _FEWEST_STEPS:
            usual = max(usual, sorted(self._steps)[len(self._steps) // 2])
        self._steps.append(step / samples)
        return usual > 0 and step > usual * max(_GAP_STEPS + samples - 1, 1.5 * samples)


def _bounds(channels: tuple[Channel, ...], name: str) -> Floats:
    """The channels' `low` or `high`; none is beyond float32, so that infinity is out of every range."""
    return np.clip([float(getattr(channel, name)) for channel in channels], -_LARGEST, _LARGEST).astype(np.float32)


def _number(value: Any, what: str) -> float | int | None:
    """A sensor's label or time as a finite number, None when it has none. Raises SensorError for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise SensorError(f"a {what} of type {type(value).__name__}; give a number or None")
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None


def _equal(one: Floats, other: Floats) -> bool:
    return np.array_equal(one, other, equal_nan=True)
