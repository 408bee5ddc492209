"""A sensor made of numbers: sines and noise, and on request every fault a real one has."""

import math
import random
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.sensors import Channel, EndOfStreamError, Options, Reading
from edge_client.sensors.options import parse
from pollen.errors import SensorError, SettingsError

MOST: Final = 1024  # channels; samples in a burst
LOW, HIGH = -1e6, 1e6
SPIKE: Final = 50.0
GAP_STEPS: Final = 20
STUCK_READINGS: Final = 50


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """`channels` sines of `cycle` samples a cycle, each begun elsewhere in it, with normal `noise`; `burst` samples a
    reading, `step_s` seconds apart by the sensor's own clock; `readings` in all, 0 for ever. `drift_at`: times in
    seconds, separated by commas, at each of which the level moves by `drift` and the cycle halves or doubles.
    `labelled`: a reading's label is the number of drifts so far, modulo 2.

    Faults, each the probability per reading: `missing` (a channel is NaN), `spike` (a channel is 50 off), `stuck` (a
    channel stands still for 50 readings), `gap` (20 samples aren't there), `nothing` (no reading), `repeat` (the last
    reading once more), `backward` (the clock goes back), `failure` (SensorError; opened again, the stream begins anew).
    The same `seed` gives the same stream.
    """

    channels: int = 2
    cycle: float = 20.0
    noise: float = 0.1
    burst: int = 1
    step_s: float = 1.0
    readings: int = 0
    drift_at: str = ""
    drift: float = 3.0
    labelled: bool = False
    missing: float = 0.0
    spike: float = 0.0
    stuck: float = 0.0
    gap: float = 0.0
    nothing: float = 0.0
    repeat: float = 0.0
    backward: float = 0.0
    failure: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("channels", "burst"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 1 to {MOST}")
        for name in ("cycle", "step_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")
        for name in ("noise", "readings"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 0")
        for name in ("missing", "spike", "stuck", "gap", "nothing", "repeat", "backward", "failure"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} is a probability, from 0 to 1")


class SyntheticSensor:
    """Gives a new reading at each read, however fast it is read; its own clock says when it would have been."""

    def __init__(self, options: Options) -> None:
        self._options = chosen = parse(SyntheticOptions, options)
        self._drifts = parse_times(chosen.drift_at)
        self._channels = tuple(Channel(f"sine_{index}", "", LOW, HIGH) for index in range(chosen.channels))
        self._chance = random.Random(chosen.seed)  # noqa: S311 - noise, no secret
        self._sample = 0  # samples so far, also those in a gap
        self._phase = 0.0  # cycles so far
        self._given = 0
        self._stuck: dict[int, tuple[float, int]] = {}  # channel: value, readings left
        self._last: Reading | None = None

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As many as the options say."""
        return self._channels

    def read(self) -> Reading | None:
        """The next reading; EndOfStreamError after the last one."""
        options = self._options
        if options.readings and self._given == options.readings:
            raise EndOfStreamError
        self._given += 1
        if self._happens(options.failure):
            raise SensorError("the synthetic sensor fails, as its options say")
        if self._happens(options.nothing):
            return None
        if self._last is not None and self._happens(options.repeat):
            return self._last
        if self._happens(options.gap):
            self._advance(GAP_STEPS)
        values = np.array([self._sampled() for _ in range(options.burst)], np.float32)
        self._spoil(values)
        moment = self._sample * options.step_s
        if self._happens(options.backward):
            moment -= self._chance.uniform(0, 1e9)
        label = self._regime() % 2 if options.labelled else None
        self._last = Reading(values, label, moment)
        return self._last

    def close(self) -> None:
        """Nothing is held open."""

    def _sampled(self) -> list[float]:
        self._advance(1)
        options, level = self._options, self._regime() * self._options.drift
        return [
            level + math.sin(2 * math.pi * (self._phase + index / options.channels)) + self._noise()
            for index in range(options.channels)
        ]

    def _noise(self) -> float:
        return self._chance.gauss(0.0, self._options.noise)

    def _advance(self, samples: int) -> None:
        for _ in range(samples):
            self._sample += 1
            self._phase = (self._phase + (1 + self._regime() % 2) / self._options.cycle) % 1.0

    def _regime(self) -> int:
        """Drifts so far."""
        return sum(self._sample * self._options.step_s >= moment for moment in self._drifts)

    def _spoil(self, values: npt.NDArray[np.float32]) -> None:
        options = self._options
        if self._happens(options.stuck):
            channel = self._any_channel()
            self._stuck.setdefault(channel, (float(values[0, channel]), STUCK_READINGS))
        for channel, (value, left) in list(self._stuck.items()):
            values[:, channel] = value
            self._stuck[channel] = (value, left - 1)
            if left == 1:
                del self._stuck[channel]
        if self._happens(options.spike):
            values[-1, self._any_channel()] += SPIKE
        if self._happens(options.missing):
            values[-1, self._any_channel()] = math.nan

    def _any_channel(self) -> int:
        return self._chance.randrange(self._options.channels)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability


def parse_times(text: str) -> tuple[float, ...]:
    """Times separated by commas. Raises SettingsError."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SettingsError(f"sensor.options.drift_at = {text!r} must be seconds, separated by commas") from error
