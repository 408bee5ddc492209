"""Gateway streams that were refused, counted by reason."""

import logging
import threading
import time
from collections import Counter, deque
from typing import Final, Literal

from pollen.errors import PollenError

LOG = logging.getLogger("pollen.server.bridge")

HANDSHAKE_S: Final = 10.0  # a connection that has opened no stream after so long is not a gateway's

Reason = Literal["handshake", "role", "name", "revoked", "hello"]
REASONS: Final[tuple[Reason, ...]] = ("handshake", "role", "name", "revoked", "hello")


class RefusedError(PollenError):
    """A gateway's stream is refused, for `reason`."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


class Refusals:
    """Counts of streams refused since the start.

    handshake: over TLS, connections from which no stream came: no certificate of the fleet's authority, or an expired
    one, or no TLS at all. grpc tells nobody of those, so they are what is missing from the connections that began.
    role: the certificate isn't a gateway's; name: it is another gateway's; revoked; hello: the first message is none,
    or another fleet's. All methods may be called by any thread.
    """

    def __init__(self, handshake_s: float = HANDSHAKE_S) -> None:
        self._handshake_s = handshake_s
        self._counts: Counter[Reason] = Counter(dict.fromkeys(REASONS, 0))
        self._begun: deque[float] = deque()  # when the connections began that have opened no stream
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def counts(self) -> dict[Reason, int]:
        """By reason, every reason."""
        with self._lock:
            return dict(self._counts)

    def count(self, refused: RefusedError, peer: str) -> None:
        """Count one, and log it; `peer`: its address."""
        with self._lock:
            self._counts[refused.reason] += 1
        LOG.warning("gateway refused from %s: %s", peer, refused)

    def dialled(self) -> None:
        """A TLS connection begins."""
        with self._lock:
            self._begun.append(time.monotonic())
            self._watch()

    def opened(self) -> None:
        """A TLS connection has opened its stream. Which one is not known, so it is the oldest."""
        with self._lock:
            if self._begun:
                self._begun.popleft()

    def _watch(self) -> None:
        if self._timer is None and self._begun:
            wait_s = self._begun[0] + self._handshake_s - time.monotonic()
            self._timer = threading.Timer(max(0.0, wait_s), self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        with self._lock:
            self._timer = None
            before = time.monotonic() - self._handshake_s
            failed = 0
            while self._begun and self._begun[0] <= before:
                self._begun.popleft()
                failed += 1
            self._counts["handshake"] += failed
            self._watch()
        if failed:
            LOG.warning("connections refused by TLS, without a valid certificate of the fleet's authority: %d", failed)
