"""A bad line between two network namespaces: delay, jitter, loss, duplicates and reordering, packet by packet.

What `tc netem` does where the kernel has that: two TUN devices (Linux, Documentation/networking/tuntap), one in each
namespace, and a thread that carries packets from one to the other. TCP above it is the kernel's own at both ends.
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.faults.network import TUN, Namespace, ip

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_LARGEST_PACKET: Final = 65536
_TURN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """What happens to a packet, in each direction. Delay and jitter in seconds: each packet is late by `delay_s`, give
    or take up to `jitter_s`, so that packets overtake each other; `loss`, `duplicates` and `reordering` (sent without
    delay) are shares of the packets."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    reordering: float = 0.0


GOOD: Final = Line()
SILENT: Final = Line(loss=1.0)  # both ends believe in their connections: half-open TCP


@dataclass(slots=True)
class Counts:
    """Packets since the last look: that came, that were lost, duplicated, or sent without delay."""

    packets: int = 0
    lost: int = 0
    duplicated: int = 0
    hurried: int = 0


class LossyLink:
    """The line into `namespace`; assign `line` at any moment. Use as a context manager."""

    def __init__(self, namespace: Namespace, seed: int = 1) -> None:
        self.line = GOOD
        self.counts = Counts()
        self._chance = random.Random(seed)
        self._late: list[tuple[float, int, int, bytes]] = []  # when due, number, where to, the packet
        self._number = 0
        near, far = namespace.interface, f"{namespace.interface}f"
        self._ends = (_tun(near), _tun(far))
        ip("link", "set", far, "netns", namespace.name)
        namespace.address(near, far)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lossy-link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)  # with it goes the interface

    def take_counts(self) -> Counts:
        """What was counted since the last call."""
        taken, self.counts = self.counts, Counts()
        return taken

    def _run(self) -> None:
        near, far = self._ends
        other = {near: far, far: near}
        while not self._closing.is_set():
            wait = min(_TURN_S, max(0.0, self._late[0][0] - time.monotonic())) if self._late else _TURN_S
            readable, _, _ = select.select(self._ends, [], [], wait)
            for end in readable:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._take(os.read(end, _LARGEST_PACKET), other[end])
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, end, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):  # a full queue or an interface that is down loses it, as it should
                    os.write(end, packet)

    def _take(self, packet: bytes, end: int) -> None:
        line, chance = self.line, self._chance
        self.counts.packets += 1
        if chance.random() < line.loss:
            self.counts.lost += 1
            return
        copies = 1
        if chance.random() < line.duplicates:
            self.counts.duplicated += 1
            copies = 2
        for _ in range(copies):
            late_s = max(0.0, line.delay_s + chance.uniform(-line.jitter_s, line.jitter_s))
            if chance.random() < line.reordering:
                self.counts.hurried += 1
                late_s = 0.0
            self._number += 1
            heapq.heappush(self._late, (time.monotonic() + late_s, self._number, end, packet))


def _tun(name: str) -> int:
    """A new TUN device; it is gone when the descriptor is closed. Raises OSError."""
    end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end
