"""The server of benchmarks.motionsense in virtual time: what the merge loop does with a rule, update by update."""

import math
import os

from benchmarks.motionsense_device import Sent
from pollen.bundle import Floats
from server.async_strategy import AsynchronousStrategy


class MergeLoop:
    """Merges updates by `rule` into `model` [F]. `tasks`: those that a device has and hasn't begun, by device."""

    def __init__(self, rule: str, initial: Floats, devices: int) -> None:
        self._strategy = AsynchronousStrategy(rule)
        self._devices = devices
        self._given: dict[str, float] = {}
        self._bases: dict[int, tuple[int, Floats]] = {}
        self._held: list[int] = []
        self._free: list[int] = []
        self.model = initial.copy()
        self.version = 0
        self.tasks: dict[int, bytes] = {}

    @property
    def flush_at_s(self) -> float:
        """When the rule's buffer must be merged; infinite when there is none."""
        due = self._strategy.rule.flush_at_s()
        return math.inf if due is None else due

    def give(self, device: int, now: float) -> None:
        """Give the device its next task."""
        self._given[str(device)], self.tasks[device] = now, os.urandom(16)

    def begin(self, device: int) -> tuple[bytes, Floats, int]:
        """The device begins with its task: that, and the newest weights [F] with their version."""
        self._bases[device] = self.version, self.model.copy()
        return self.tasks.pop(device), self.model, self.version

    def merge(self, device: int, sent: Sent, now: float) -> None:
        """An update has come."""
        base_version, base = self._bases.pop(device)
        turnaround = now - self._given.pop(str(device))
        merged = self._strategy.merge(
            self.model,
            sent.delta,
            base,
            self.version - base_version,
            sent.update.samples,
            client=str(device),
            clients=self._devices,
            now_s=now,
            turnaround_s=turnaround,
            outstanding=self._given,
        )
        (self._held if merged.hold else self._free).append(device)
        if merged.changed:
            self._publish()

    def flush(self) -> None:
        """Merge the rule's buffer, if there is one."""
        if self._strategy.rule.flush(self.model):
            self._publish()

    def released(self) -> list[int]:
        """Devices that may have their next task now."""
        free, self._free = self._free, []
        return free

    def _publish(self) -> None:
        self.version += 1
        self._free += self._held
        self._held = []
