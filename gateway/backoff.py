"""How long to wait before the next attempt to connect: exponential back-off with full jitter."""

import secrets
import time

_RANDOM = secrets.SystemRandom()


class Backoff:
    """Waits that double from `first_s` to `most_s`, each drawn evenly from 0 to that bound.

    Full jitter, because whatever took the other side down took it from everyone at once. A connection resets the
    waits only once it has lasted `most_s`: one that is accepted and thrown out again must not be retried hot.
    """

    def __init__(self, first_s: float = 0.25, most_s: float = 5.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._bound_s = first_s
        self._connected_at: float | None = None

    def connected(self) -> None:
        """A connection came up."""
        self._connected_at = time.monotonic()

    def wait_s(self) -> float:
        """Seconds to wait after a failure or a lost connection."""
        if self._connected_at is not None and time.monotonic() - self._connected_at >= self._most_s:
            self._bound_s = self._first_s
        self._connected_at = None
        wait = _RANDOM.uniform(0.0, self._bound_s)
        self._bound_s = min(self._most_s, 2.0 * self._bound_s)
        return wait
