"""Frames on their way into a stream, for tests that put them there from another thread."""

from collections.abc import Iterator
from queue import SimpleQueue

from pollen import bridge
from pollen.bridge import Frame


def encoded(queue: "SimpleQueue[Frame | None]") -> Iterator[bytes]:
    """Each frame of `queue` as a message of its own, until it gives None."""
    while (frame := queue.get()) is not None:
        yield bridge.encode([frame])
