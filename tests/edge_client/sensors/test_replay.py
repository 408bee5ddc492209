"""Recordings as sensors: every row in order, at the speed that was asked for, and faults as faults."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import EndOfStreamError, replay
from edge_client.sensors.replay import MOST_AT_ONCE, ReplaySensor
from pollen.errors import SettingsError
from tests.edge_client.sensors.recordings import all_readings
from tests.edge_client.sensors.scripted import played, sampler

WaitUntil = Callable[..., Any]
DATA = Path(__file__).parents[4] / "shared/data/nab-streams/public.npz"


class Watch:
    """Stands in for the `time` module of the replay."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    one = Watch()
    monkeypatch.setattr(replay, "time", one)
    return one


def written(folder: Path, text: str) -> str:
    path = folder / "data.csv"
    path.write_text(text)
    return str(path)


def test_npz_times_that_are_no_numbers_dont_stop_the_others(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=np.arange(6.0)[:, None], time=np.array([0, 1, np.nan, 3, np.inf, 5]))
    one = ReplaySensor({"file": str(path), "speed": 1.0})
    assert replayed(one, watch, 0.5, 10) == [(0, [0]), (1, [1]), (1.5, [2]), (3, [3]), (3.5, [4]), (5, [5])]


def test_csv_gives_rows_labels_and_times(tmp_path: Path) -> None:
    file = written(tmp_path, "time, a ,subject,b,label\n0,1,anna,2,0\n\n1,3.5,anna,-4e2,1\n2,5,bea,6,\n")
    one = ReplaySensor({"file": file})
    assert [channel.name for channel in one.channels] == ["a", "b"]
    found = all_readings(one)
    assert [reading.values.tolist() for reading in found] == [[[1, 2]], [[3.5, -400]], [[5, 6]]]
    assert [reading.label for reading in found] == [0, 1, None]
    assert [reading.time for reading in found] == [0, 1, 2]
    assert found[0].values.dtype == np.float32


@pytest.mark.parametrize(
    ("column", "cells", "labels"), [("y", ("0.5", "2"), [0.5, 2]), ("target", ("1e1", "x"), [10, None])]
)
def test_csv_labels_may_be_targets(tmp_path: Path, column: str, cells: tuple[str, str], labels: list[Any]) -> None:
    file = written(tmp_path, f"{column},a\n{cells[0]},1\n{cells[1]},2\n")
    assert [reading.label for reading in all_readings(ReplaySensor({"file": file}))] == labels


def test_csv_labels_may_be_names(tmp_path: Path) -> None:
    file = written(tmp_path, "a,label\n1,walk\n2,rest\n3,swim\n")
    found = all_readings(ReplaySensor({"file": file, "classes": "rest, walk"}))
    assert [reading.label for reading in found] == [1, 0, None]


def test_csv_rows_that_cant_be_read_are_faults_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    rows = ["1,1", "2", "3,oops", "4,4,4", '"5,5', "6,", "7_0,7", "8,8\x00", "9," + "9" * 100_000, "10,10"]
    file = written(tmp_path, "a,b\n" + "\n".join(rows) + "\n")
    one = ReplaySensor({"file": file})
    found = all_readings(one)
    as_lists = [np.nan_to_num(reading.values, nan=-1).tolist()[0] for reading in found]
    assert as_lists[:7] == [[1, 1], [-1, -1], [3, -1], [-1, -1], [-1, -1], [6, -1], [-1, 7]]
    assert as_lists[-1] == [10, 10]
    assert one.bad_rows >= 5
    assert caplog.text.count("can't be read") == 1
    assert "row 2 can't be read" in caplog.text
    samples = played(sampler(ReplaySensor, options={"file": file}), wait_until)
    assert samples[-1].values.tolist() == [[10, 10]]


def test_csv_bytes_that_are_no_text_spoil_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,\xff\xfe\n2,3\n")
    one = ReplaySensor({"file": str(path)})
    assert [channel.name for channel in one.channels] == ["a", "b"]
    assert [reading.values[0, 0] for reading in all_readings(one)] == [1, 2]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "first line"),
        ("1,2\n3,4\n", {}, "first line"),
        ("a,a\n1,2\n", {}, "first line"),
        ("a,\n1,2\n", {}, "first line"),
        ("a,b\n", {}, "no row"),
        ("a;b\n1;2\n", {}, "by commas"),
        ("a\tb\n1\t2\n", {}, "by commas"),
        (",".join(f"a{n}" for n in range(20_000)) + "\n1,2\n", {}, "characters"),
        ("time,label\n1,2\n", {}, "no column that is a channel"),
        ("a,b\n1,2\n", {"time": "when"}, "no column 'when'"),
        ("a,b\n1,2\n", {"speed": 1.0}, "needs times"),
        ("a,b\n1,2\n", {"speed": -1.0}, "speed"),
        ("a,b\n1,2\n", {"pace": 1}, "pace"),
    ],
)
def test_csv_names_what_it_cant_use(tmp_path: Path, text: str, options: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ReplaySensor({"file": written(tmp_path, text)} | options)


def test_a_missing_csv_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.csv"):
        ReplaySensor({"file": "nowhere.csv"})


def test_iso_times_are_seconds_since_1970(tmp_path: Path) -> None:
    rows = ["2014-02-14 14:30:00", "2014-02-14T14:30:05Z", "2014-02-14T15:30:10.5+01:00", "1392388220", "soon"]
    file = written(tmp_path, "timestamp,value\n" + "\n".join(f"{row},1" for row in rows))
    found = all_readings(ReplaySensor({"file": file, "time": "timestamp"}))
    assert [reading.time for reading in found] == [1392388200, 1392388205, 1392388210.5, 1392388220, None]


def replayed(one: ReplaySensor, watch: Watch, period: float, seconds: float) -> list[tuple[float, list[float]]]:
    """When, since the start, which values of the first channel came."""
    found, start = [], watch.now
    for index in range(round(seconds / period) + 1):
        watch.now = start + index * period
        try:
            reading = one.read()
        except EndOfStreamError:
            break
        if reading is not None:
            found.append((round(watch.now - start, 6), reading.values[:, 0].tolist()))
    return found


def test_rows_come_when_their_time_says_so(tmp_path: Path, watch: Watch) -> None:
    file = written(tmp_path, "time,a\n100,0\n101,1\n102,2\n110,3\n111,4\n")
    real = replayed(ReplaySensor({"file": file, "speed": 1.0}), watch, 0.5, 20)
    assert real == [(0, [0]), (1, [1]), (2, [2]), (10, [3]), (11, [4])]
    fast = replayed(ReplaySensor({"file": file, "speed": 10.0}), watch, 0.05, 2)
    assert fast == [(0, [0]), (0.1, [1]), (0.2, [2]), (1.0, [3]), (1.1, [4])]


def test_rows_that_became_due_come_in_one_burst_that_ends_at_a_gap(tmp_path: Path, watch: Watch) -> None:
    rows = "".join(f"{t},{t}\n" for t in [*range(10), *range(30, 36)])
    one = ReplaySensor({"file": written(tmp_path, "time,a\n" + rows), "speed": 1.0})
    found = replayed(one, watch, 4.0, 60)
    assert [value for _, values in found for value in values] == [*range(10), *range(30, 36)]
    for _, values in found:
        assert np.diff(values).tolist() == [1] * (len(values) - 1), "no gap within a reading"
    assert max(len(values) for _, values in found) >= 3
    long = "".join(f"{t},{t}\n" for t in range(500))
    sizes = [
        len(v)
        for _, v in replayed(
            ReplaySensor({"file": written(tmp_path, "time,a\n" + long), "speed": 1.0}), watch, 200.0, 2000
        )
    ]
    assert max(sizes) == MOST_AT_ONCE


def test_labelled_rows_come_one_by_one(tmp_path: Path, watch: Watch) -> None:
    rows = "".join(f"{t},{t},1\n" for t in range(10))
    one = ReplaySensor({"file": written(tmp_path, "time,a,label\n" + rows), "speed": 1.0})
    assert [values for _, values in replayed(one, watch, 5.0, 60)] == [[value] for value in range(10)]


def test_stamps_that_repeat_or_go_back_are_due_at_once(tmp_path: Path, watch: Watch) -> None:
    file = written(tmp_path, "time,a\n10,0\n11,1\n11,2\n5,3\n6,4\n-1e9,5\n")
    found = replayed(ReplaySensor({"file": file, "speed": 1.0}), watch, 0.25, 10)
    assert found == [(0, [0]), (1, [1]), (1.25, [2]), (1.5, [3]), (2, [4]), (2.25, [5])]


def test_gaps_of_a_recording_are_gaps_of_its_samples(tmp_path: Path, wait_until: WaitUntil) -> None:
    times = [*range(20), *range(60, 80), 79, 79, 10, 11]
    file = written(tmp_path, "time,a\n" + "".join(f"{t},{n}\n" for n, t in enumerate(times)))
    one = sampler(ReplaySensor, options={"file": file})
    samples = played(one, wait_until)
    assert len(samples) == len(times)
    gaps = np.flatnonzero(np.diff([sample.number for sample in samples]) > 1)
    assert gaps.tolist() == [19]
    assert (one.counters.gaps, one.counters.clock_faults) == (1, 3)


def test_a_loop_goes_on_as_if_the_first_row_followed_the_last(
    tmp_path: Path, watch: Watch, wait_until: WaitUntil
) -> None:
    file = written(tmp_path, "time,a\n" + "".join(f"{t},{t}\n" for t in range(10)))
    one = ReplaySensor({"file": file, "loop": True})
    assert [reading.time for reading in all_readings(one, 25)] == list(range(25))
    timed = ReplaySensor({"file": file, "loop": True, "speed": 1.0})
    assert replayed(timed, watch, 1.0, 24) == [(t, [t % 10]) for t in range(25)]


def test_a_large_csv_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("time,a,b\n" + "".join(f"{n},{n},{n}\n" for n in range(200_000)))
    tracemalloc.start()
    one = ReplaySensor({"file": str(path), "loop": True})
    for _ in range(2000):
        one.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one.close()
    assert peak < 2**20


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} isn't there")
def test_a_real_loggers_clock_faults_lose_no_reading(tmp_path: Path, wait_until: WaitUntil) -> None:
    """NAB's machine temperature steps back 55 minutes once (its README)."""
    stream = "machine_temperature_system_failure"
    with np.load(DATA, allow_pickle=False) as data:
        t, v = data[f"t__{stream}"], data[f"v__{stream}"]
    np.savez(tmp_path / "stream.npz", X=v[:, None], time=t)
    one = sampler(ReplaySensor, queue=len(v), period_s=1.0, options={"file": str(tmp_path / "stream.npz")})
    samples = played(one, wait_until)
    steps = np.diff(t)
    assert (steps <= 0).any()
    again = int(((steps == 0) & (np.diff(v) == 0)).sum())
    assert one.counters.duplicates == again
    assert one.counters.clock_faults == (steps <= 0).sum() - again
    assert one.counters.gaps == (steps > 3 * np.median(steps)).sum()
    assert len(samples) == len(v) - again
