"""A pace for requests: who asks too often waits, so that no flood of them takes the processor from merging."""

import asyncio
import time
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

PER_SECOND: Final = 100.0
BURST_S: Final = 0.5  # how much may come at once


class Pace:
    """Begins at most `per_second` requests a second, after a burst of half a second's. A connection has one request
    open at a time and connections are bounded (`pollen.http_service`), so nobody waits longer than their number over
    the rate: 128 / 100 s. One event loop only."""

    def __init__(self, application: ASGIApp, per_second: float = PER_SECOND) -> None:
        self._application = application
        self._step = 1.0 / per_second
        self._next = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's question."""
        now = time.monotonic()
        self._next = max(self._next + self._step, now - BURST_S)
        if self._next > now:
            await asyncio.sleep(self._next - now)
        await self._application(scope, receive, send)
