"""The NAB benchmark: its yardsticks by hand, and the whole of it on two streams."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import nab_yardsticks as yardsticks
from benchmarks.nab_yardsticks import DATA, PUBLISHED, Stream

PROJECT = Path(__file__).parents[2]

needs_data = pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA} isn't here")


def _stream(windows: list[list[int]]) -> Stream:
    """A hundred readings, one an hour."""
    return Stream("hourly", np.zeros(100), np.arange(100) * 3600, np.array(windows, np.int64).reshape(-1, 2))


@needs_data
def test_the_yardsticks_are_those_of_the_datas_readme() -> None:
    streams = {stream.name: stream for stream in yardsticks.load()}
    assert len(streams) == 14
    for name, (persistence, squares) in PUBLISHED.items():
        stream = streams[name]
        plain = yardsticks.mean_absolute_error(stream, yardsticks.persistence(stream.values))
        found = yardsticks.mean_absolute_error(stream, yardsticks.recursive_least_squares(stream.values))
        assert plain == pytest.approx(persistence, rel=1e-3)
        # The README doesn't say how the values were scaled; where ours differ, they are the lower ones.
        assert found <= 1.005 * squares
        assert found == pytest.approx(squares, rel=0.005 if name != "ec2_cpu_utilization_24ae8d" else 0.07)


def test_least_squares_finds_a_recursion() -> None:
    chance = np.random.default_rng(0)
    values = np.zeros(2000)
    for now in range(2, 2000):
        values[now] = 1.6 * values[now - 1] - 0.8 * values[now - 2] + chance.normal()
    errors = np.abs(values - yardsticks.recursive_least_squares(values))[1000:]
    assert errors.mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.1)  # what the noise leaves


def test_alarms_are_judged_by_hand() -> None:
    # Windows from hour 20 to 29 and 50 to 59; the first 15 readings aren't scored.
    stream = _stream([[20 * 3600, 29 * 3600], [50 * 3600, 59 * 3600]])
    found = yardsticks.judge(stream, [3, 16, 25, 26, 70, 99])
    assert (found.found, found.windows, found.false) == (1, 2, 3)
    assert found.weeks == pytest.approx(65 / 168)
    assert found.false_a_week == pytest.approx(3 * 168 / 65)
    assert found.by_chance == pytest.approx(2 * (1 - np.exp(-3 / 65 * 9)))


def test_the_naive_detector_tells_an_outlier_once() -> None:
    values = np.tile([0.0, 1.0], 200)
    values[300:310] = 50.0
    assert yardsticks.naive_alarms(values) == [300]


@needs_data
@pytest.mark.timeout(600)
def test_a_device_learns_two_streams_better_than_persistence() -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.nab", "--quick"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert "better than persistence on 2 of 2" in run.stdout, run.stderr[-2000:]
    ratio = re.search(r"^occupancy_6005 +\S+ +\S+ +\S+ +(\S+)", run.stdout, re.MULTILINE)
    assert ratio is not None
    assert float(ratio[1]) < 0.9
