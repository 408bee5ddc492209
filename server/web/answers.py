"""Answers in JSON, and those that are kept for a second, so that many who ask cost as little as one."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.responses import Response

from server.history_file import line

FRESH_S: Final = 1.0


def answer(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON; numbers that are not finite are null."""
    return Response(line(content), status, headers, "application/json")


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """{"error": `text`}."""
    return answer({"error": text}, status, headers)


class Kept:
    """What `make()` returns, made again when it is older than `seconds`, or than four times as long as the making took.
    One event loop only."""

    def __init__(self, make: Callable[[], bytes], seconds: float = FRESH_S) -> None:
        self._make = make
        self._seconds = seconds
        self._made = b""
        self._until = 0.0

    def get(self) -> bytes:
        """The newest, or a recent one."""
        begun = time.monotonic()
        if begun >= self._until:
            self._made = self._make()
            ended = time.monotonic()
            self._until = ended + max(self._seconds, 4 * (ended - begun))
        return self._made
