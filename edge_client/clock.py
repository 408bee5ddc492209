"""The agent's clock as an object, so that tests can move it: libfaketime breaks CPython's waits."""

import ctypes
import threading
import time
from typing import Final, Protocol

_TIME_ERROR: Final = 5  # adjtimex(2): "the system clock is not synchronized"
# struct timex has about 210 bytes, more or fewer by machine. All zero, so `modes`, its first field, asks for no change.
_TIMEX_BYTES: Final = 512
_KNOWN_FOR_S: Final = 60.0


class Clock(Protocol):
    """Where all time of the agent comes from."""

    def monotonic(self) -> float:
        """Seconds that never jump; every interval is measured with these."""

    def wall(self) -> float:
        """Seconds since 1970; only ever recorded, since a Pi's wall clock may be years off."""

    def synchronised(self) -> bool | None:
        """Whether `wall` is known to be right (True) or known to be a guess (False); None where nobody can say."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, at most `seconds`; whether it is."""


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._synchronised: bool | None = None

    def monotonic(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()

    def wall(self) -> float:
        """`time.time`."""
        return time.time()

    def synchronised(self) -> bool | None:
        """What the kernel was told by its time daemon, at most a minute ago; None where there is no adjtimex."""
        now = time.monotonic()
        if now - self._asked_at >= _KNOWN_FOR_S:
            self._asked_at = now
            self._synchronised = kernel_synchronised()
        return self._synchronised

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """`event.wait`."""
        return event.wait(max(0.0, seconds))


def kernel_synchronised() -> bool | None:
    """Whether the kernel holds its wall clock for synchronised (adjtimex(2)); None when it doesn't say."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):  # no such call in this C library
        return None
    return None if state < 0 else state != _TIME_ERROR
