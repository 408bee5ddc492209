"""What the gateway has carried and refused: plain numbers, written by its loop and read by whoever asks for metrics."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

# Why a message is not passed on.
Refusal = Literal["rate", "bytes", "oversize", "topic", "error"]
REFUSALS: Final[tuple[Refusal, ...]] = ("rate", "bytes", "oversize", "topic", "error")
# Upper bounds in seconds: a commit takes milliseconds, an absent server minutes.
ACCEPT_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0)


class Counts:
    """Counted since the start. One thread writes; a reader may be a message behind, which metrics always are."""

    def __init__(self) -> None:
        self.beat_at = time.monotonic()  # when the loop last came round
        self.received: Counter[str] = Counter()  # messages, by the topic's last part
        self.received_bytes: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.refused: Counter[Refusal] = Counter()
        self.uploads = 0  # handed to the server; again for every new stream
        self.accepted = 0
        self.accept_s = 0.0  # sum of the seconds from intake to acceptance
        self.accept_buckets = [0] * (len(ACCEPT_BOUNDS_S) + 1)
        self.broker_connections = 0
        self.server_connections = 0
        self.pauses = 0  # how often nothing was read from the broker because of limits.inflight_bytes

    def receive(self, leaf: str, size: int) -> None:
        """A message of `size` bytes came from the broker."""
        self.received[leaf] += 1
        self.received_bytes[leaf] += size

    def send(self, leaf: str, size: int) -> None:
        """A message of `size` bytes went to the broker."""
        self.sent[leaf] += 1
        self.sent_bytes[leaf] += size

    def accept(self, seconds: float) -> None:
        """The server accepted an upload so many seconds after it came in."""
        self.accepted += 1
        self.accept_s += seconds
        self.accept_buckets[bisect_left(ACCEPT_BOUNDS_S, seconds)] += 1

    @property
    def all_refused(self) -> int:
        """Messages that were not passed on, for whatever reason."""
        return sum(self.refused.values())


@dataclass(frozen=True, slots=True)
class Gauges:
    """How things stand at one moment; `waiting`: frames and messages in each queue, by its name."""

    broker_connected: bool
    server_connected: bool
    in_flight: int
    in_flight_bytes: int
    left_uploads: int
    devices_known: int
    devices_online: int
    devices_limited: int
    waiting: Mapping[str, int]
