"""CPU seconds and resident memory of processes, by role."""

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import psutil

PERIOD_S: Final = 0.25
WINDOW: Final = 4  # periods over which a peak of CPU is taken


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a role used: `cpu` in cores over a second, `rss_mb` in MB of 10^6 bytes."""

    cpu: float
    rss_mb: float


def cpu_seconds(roles: Mapping[str, psutil.Process]) -> dict[str, float]:
    """CPU seconds used so far, user and system, by role."""
    return {role: sum(process.cpu_times()[:2]) for role, process in roles.items()}


def rss_mb(roles: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Resident memory in MB of 10^6 bytes, by role."""
    return {role: process.memory_info().rss / 1e6 for role, process in roles.items()}


def tree_cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and all its descendants, those that have ended too, as far as they were waited for."""
    seconds = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(one.cpu_times()[:4])
    return seconds


def tree_rss_mb(process: psutil.Process) -> float:
    """Resident memory of a process and all its descendants in MB of 10^6 bytes; shared pages count in each."""
    resident = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            resident += one.memory_info().rss
    return resident / 1e6


class Peaks:
    """Watches `roles` four times a second while its block runs; a role may be replaced, or be gone for a while."""

    def __init__(self, roles: dict[str, psutil.Process]) -> None:
        self._roles = roles
        self._samples: dict[tuple[str, int], list[float]] = {}
        self._rss: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def peaks(self) -> dict[str, Peak]:
        """What was the most so far, by role."""
        cpu = dict.fromkeys(self._rss, 0.0)
        for (role, _), seconds in self._samples.items():
            steps = [late - early for early, late in zip(seconds, seconds[WINDOW:], strict=False)]
            cpu[role] = max([cpu[role], *[step / (WINDOW * PERIOD_S) for step in steps]])
        return {role: Peak(cpu[role], self._rss[role]) for role in self._rss}

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        for role, process in list(self._roles.items()):
            try:
                used, resident = sum(process.cpu_times()[:2]), process.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
            self._samples.setdefault((role, process.pid), []).append(used)
            self._rss[role] = max(resident, self._rss.get(role, 0.0))
