"""The benchmark of a device's cost, shortened: real devices at two speeds beside their bare loops."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_devices_are_measured_beside_a_loop_that_only_reads() -> None:
    command = [sys.executable, "-m", "benchmarks.device_cost", "--hertz", "20", "50", "--seconds", "8"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stderr
    rows = [re.findall(r"[\d.]+", line) for line in done.stdout.splitlines()[2:]]
    assert [float(row[0]) for row in rows] == [20, 50]
    for _, resident, bare, _, cpu, bare_cpu, _, trainings, each_ms, sent in rows:
        assert float(resident) > float(bare) > 10
        assert 100 > float(cpu) > float(bare_cpu)
        assert int(trainings) >= 1
        assert float(each_ms) > 0
        assert float(sent) > 1
