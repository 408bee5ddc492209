"""A device over 24 simulated hours: its memory and its files stay as large as they are.

A real pollen-edge on a real broker; the other side merges each update, publishes a new version and gives the next task.
A second of the device's life is a reading of 8 channels, taken 200 times faster; so are the writes to the disk. The
kernel refuses the device more than 128 MB of writable private memory (RLIMIT_DATA, which counts what is only reserved
too, so it is the harder limit), and its peak is checked. With POLLEN_SOAK_CGROUP, the folder of a memory cgroup that
someone has made, the device lives in that one instead. POLLEN_SOAK_HOURS makes its life longer, or shorter: 10 hours
are the least that say something.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from pollen import encoding, messages
from pollen.bundle import Bundle
from tests.edge_client.fleet import LIMIT, Device, Server

HOURS: Final = max(10.0, float(os.environ.get("POLLEN_SOAK_HOURS", "24")))
CGROUP: Final = os.environ.get("POLLEN_SOAK_CGROUP", "")
LIMIT_BYTES: Final = 128 * 2**20
PERIOD_S: Final = 0.005
SPEED: Final = 1.0 / PERIOD_S
LOOK_S: Final = 0.5
SETTLED_H: Final = 5.0  # the buffer and the database of the newest samples are full by then
START_S: Final = 60.0
MOST_GROWTH_BYTES: Final = 2**20  # in 24 hours

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 4 * HOURS * 3600 / SPEED)]


class Merging:
    """The other side: merges each update into the model, and answers with receipt, new version and the next task."""

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self._server, self._bundle = server, bundle
        self._weights, self._version = bundle.shared.copy(), 0
        self.merged = 0
        self.vitals: dict[str, float] = {}
        server.publish_model(bundle, 0)

    def begin(self) -> None:
        self._server.task(self._bundle)

    def step(self) -> None:
        """Answer what has come; none of it is kept."""
        while self._server.received:
            _, leaf, payload = self._server.received.pop(0)
            if leaf == "update":
                self._merge(messages.decode_update(payload, LIMIT))
            elif leaf == "vitals":
                self.vitals = dict(messages.decode_vitals(payload).values)
            elif leaf == "result":
                pytest.fail(f"a task could not be done: {messages.decode_result(payload).error}")

    def _merge(self, update: messages.Update) -> None:
        delta = np.empty_like(self._weights)
        encoding.decode_into(delta, update.delta, self._bundle.manifest.shared)
        self._weights += 0.5 * delta
        self._version += 1
        self.merged += 1
        self._server.publish_model(self._bundle, self._version, self._weights)
        self._server.receipt(update)
        self._server.task(self._bundle, version=self._version)


def test_memory_and_files_stay_as_large_as_they_are_over_a_day(
    server: Server, device: Callable[..., Device], bundles: Callable[[str], Bundle], tmp_path: Path
) -> None:
    merging = Merging(server, bundles("mlp"))
    one = device(
        python=confined_python(tmp_path),
        sensor={
            "kind": "synthetic",
            "period_s": PERIOD_S,
            # A few of the faults that a day of a real sensor has, and a drift every six hours.
            "options": {
                "channels": 8,
                "missing": 0.001,
                "spike": 0.0001,
                "gap": 0.0003,
                "nothing": 0.001,
                "drift_at": ",".join(str(3600.0 * hour) for hour in range(6, 24, 6)),
            },
        },
        training={"new_samples": 64, "max_steps": 40, "fetch_s": 5.0},
        storage={"flush_s": 60.0 / SPEED},
        upload={"vitals_s": 1.0},
        anomaly={"enabled": True},
        logging={"level": "info"},
    )
    merging.begin()

    readings = HOURS * 3600
    seen: list[tuple[float, int, int]] = []  # readings so far, bytes resident, bytes of all files
    deadline = time.monotonic() + START_S + 3 * readings / SPEED
    next_look = 0.0
    while merging.vitals.get("samples_seen", 0.0) < readings:
        assert one.process.poll() is None, f"the device ended with {one.process.poll()}; log:\n{one.log()[-2000:]}"
        assert time.monotonic() < deadline, f"too slow on this machine: {merging.vitals.get('samples_seen')} readings"
        merging.step()
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LOOK_S
            seen.append((merging.vitals.get("samples_seen", 0.0), status_bytes(one.pid, "VmRSS"), file_bytes(one)))
        time.sleep(0.01)

    vitals, peak = merging.vitals, status_bytes(one.pid, "VmHWM")
    settled = np.array([look for look in seen if look[0] >= SETTLED_H * 3600], float)
    hours = settled[:, 0] / 3600
    memory, files = 24 * slope(hours, settled[:, 1]), 24 * slope(hours, settled[:, 2])
    report = (
        f"{vitals['samples_seen']:.0f} readings, {merging.merged} updates merged, {vitals['drifts']:.0f} drifts, "
        f"{vitals['samples_dropped']:.0f} dropped; resident {seen[0][1] / 2**20:.1f} MiB at first, "
        f"{settled[0, 1] / 2**20:.1f} settled, {settled[-1, 1] / 2**20:.1f} at the end, {peak / 2**20:.1f} at most, "
        f"slope {memory / 2**20:+.2f} MiB a day; files {settled[0, 2] / 2**20:.2f} MiB settled, "
        f"{settled[:, 2].max() / 2**20:.2f} at most, slope {files / 2**20:+.2f} MiB a day"
    )
    print(report)
    (one.state_dir.parent / "soak.csv").write_text("\n".join(f"{n:.0f},{m},{f}" for n, m, f in seen))
    assert merging.merged >= readings / 64 / 4, report  # it did learn all the time
    assert peak <= LIMIT_BYTES, report
    assert memory <= MOST_GROWTH_BYTES, report
    assert files <= MOST_GROWTH_BYTES, report
    assert settled[:, 2].max() <= 1.25 * np.median(settled[:, 2]), report


def confined_python(folder: Path) -> str:
    """A Python that has no more than 128 MB from its first page on: see above."""
    script = folder / "python"
    confine = f"echo $$ > {CGROUP}/cgroup.procs" if CGROUP else f"ulimit -d {LIMIT_BYTES // 1024}"
    script.write_text(f'#!/bin/sh -e\n{confine}\nexec {sys.executable} "$@"\n')
    script.chmod(0o700)
    return str(script)


def status_bytes(pid: int, name: str) -> int:
    """A size in /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def file_bytes(one: Device) -> int:
    """What all files of the device's state hold; those that are being replaced count as they are found."""
    total = 0
    for path in one.state_dir.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen): outliers don't move it."""
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] > x[first]
    return float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart]))
