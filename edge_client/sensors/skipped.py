"""Counting input that can't be used, without filling the log with it."""

import logging
import time
from typing import Final

LOG = logging.getLogger(__name__)

_REPORT_S: Final = 60.0


class Skipped:
    """Counts skipped pieces of input, and says how many in one log line a minute at most."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._unreported = 0
        self._reported = -_REPORT_S
        self.total = 0

    def add(self, count: int, reason: str) -> None:
        """`count` pieces more; `reason` is what was wrong with the last one."""
        if count == 0:
            return
        self.total += count
        self._unreported += count
        now = time.monotonic()
        if now - self._reported >= _REPORT_S:
            LOG.warning("%s: %d skipped, the last one %s", self._source, self._unreported, reason)
            self._reported = now
            self._unreported = 0
