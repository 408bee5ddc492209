"""Clocks that tests can move."""

import threading
import time


class MovedClock:
    """The machine's clock, but for the wall time, which is `offset` seconds away, and what is known of it."""

    def __init__(self, *, offset: float = 0.0, known: bool | None = True) -> None:
        self.offset = offset
        self.known = known

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time() + self.offset

    def synchronised(self) -> bool | None:
        return self.known

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(max(0.0, seconds))


class VirtualClock:
    """Time that passes only by waiting for it, and then at once. For a single thread that waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_now = 1.7e9
        self.known: bool | None = True

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_now

    def synchronised(self) -> bool | None:
        return self.known

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.wall_now += seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if not event.is_set():
            self.pass_by(max(0.0, seconds))
        return event.is_set()
