"""A pace for requests: who asks too often waits, so that no flood of them takes the processor from merging."""

import asyncio
import time
from collections import deque
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PER_SECOND: Final = 100.0
BURST_S: Final = 0.5  # how much may come at once


class Pace:
    """Begins at most `per_second` requests a second, after a burst of half a second's, in the order they came in. Who
    goes while waiting takes nobody's turn: a connection has one request open at a time and connections are bounded
    (`pollen.http_service`), so nobody waits longer than their number over the rate: 128 / 100 s. A request with a body
    does not wait, since none is taken (`Security`). One event loop only."""

    def __init__(self, application: ASGIApp, per_second: float = PER_SECOND) -> None:
        self._application = application
        self._step = 1.0 / per_second
        self._next = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's question."""
        if _has_body(scope) or self._is_free():
            await self._application(scope, receive, send)
            return
        came = [await receive()]  # that there is no body; what comes after it is that the client has gone
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._call_next()
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                return
        finally:
            gone.cancel()
            turn.cancel()

        async def again() -> Message:
            return came.pop() if came else await receive()

        await self._application(scope, again, send)

    def _is_free(self) -> bool:
        """Take a turn now, if there is one and nobody else waits for it."""
        now = time.monotonic()
        if self._waiting or self._next + self._step > now:
            return False
        self._next = max(self._next + self._step, now - BURST_S)
        return True

    def _call_next(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(max(0.0, self._next + self._step - time.monotonic()), self._begin)

    def _begin(self) -> None:
        """Give the turn to who has waited longest and is still there."""
        while self._waiting and self._waiting[0].cancelled():
            self._waiting.popleft()
        if self._waiting:
            self._next = max(self._next + self._step, time.monotonic() - BURST_S)
            self._waiting.popleft().set_result(None)
        if self._waiting:
            self._call_next()


def _has_body(scope: Scope) -> bool:
    names = {name for name, value in scope.get("headers", ()) if value != b"0"}
    return b"content-length" in names or b"transfer-encoding" in names
