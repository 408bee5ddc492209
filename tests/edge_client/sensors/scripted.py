"""A sensor that plays a list, and a sampler that reads it in virtual time."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_client.sensors import Channel, EndOfStreamError, Reading
from edge_client.sensors.sampling import Sample, Sampler
from edge_client.settings import Sensor
from tests.edge_client.clock import VirtualClock

AB = (Channel("a", "V"), Channel("b", "V"))
PERIOD_S = 0.1


class Script:
    """What a sensor does at each read: a list is the values of a reading, a Reading or None is given as it is, an
    exception is raised, a function is called and gives one of these. At its end the stream ends."""

    def __init__(self, steps: list[Any], channels: tuple[Channel, ...] = AB) -> None:
        self.steps = steps
        self.channels = channels
        self.opened = 0
        self.closed = 0

    def __call__(self, _options: Mapping[str, Any]) -> "Script":
        self.opened += 1
        return self

    def read(self) -> Any:
        if not self.steps:
            raise EndOfStreamError
        step = self.steps.pop(0)
        step = step() if callable(step) else step
        if isinstance(step, BaseException):
            raise step
        return Reading(np.asarray(step, np.float32)) if isinstance(step, list) else step

    def close(self) -> None:
        self.closed += 1


def sampler(script: Any, clock: Any = None, **settings: Any) -> Sampler:
    chosen = Sensor(**({"period_s": PERIOD_S, "queue": 100} | settings))
    return Sampler(script, chosen, clock=clock or VirtualClock(), wake=threading.Event())


def played(one: Sampler, wait_until: Callable[..., Any]) -> list[Sample]:
    """All samples until the stream ends."""
    one.start()
    wait_until(lambda: one.ended, 60, "the stream's end")
    one.stop()
    return one.take(10**6)
