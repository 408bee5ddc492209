"""The agent's clock as an object, so that tests can move it: libfaketime breaks CPython's waits."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where all time of the agent comes from."""

    def monotonic(self) -> float:
        """Seconds that never jump; every interval is measured with these."""

    def wall(self) -> float:
        """Seconds since 1970; only ever recorded, since a Pi's wall clock may be years off."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, at most `seconds`; whether it is."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()

    def wall(self) -> float:
        """`time.time`."""
        return time.time()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """`event.wait`."""
        return event.wait(max(0.0, seconds))
