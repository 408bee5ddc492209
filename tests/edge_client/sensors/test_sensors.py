"""Sensors and the thread that reads them."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from edge_client import sensors
from edge_client.clock import SystemClock
from edge_client.sensors import Channel, EndOfStreamError, Reading
from edge_client.sensors.host import CHANNELS, HostSensor
from edge_client.sensors.replay import ReplaySensor
from edge_client.sensors.sampling import Sample, Sampler
from pollen.errors import SensorError, SettingsError

PROJECT = Path(__file__).parents[3]


class Scripted:
    """Plays a list: an array is a reading, an exception is raised, None ends the stream."""

    channels = (Channel("a", "V"), Channel("b", "V"))
    opened = 0
    script: ClassVar[list[Any]] = []

    def __init__(self, _options: Mapping[str, Any]) -> None:
        type(self).opened += 1

    def read(self) -> Reading:
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if step is None:
            raise EndOfStreamError
        return Reading(np.asarray(step, np.float32))

    def close(self) -> None:
        pass


def sampler(script: list[Any], **settings: Any) -> Sampler:
    kind = type("Kind", (Scripted,), {"script": script, "opened": 0})
    values = {"period_s": 0.001, "phase_s": 0.0, "queue": 100} | settings
    one = Sampler(kind, {}, clock=SystemClock(), wake=threading.Event(), **values)
    one.kind = kind  # type: ignore[attr-defined]
    return one


def finished(one: Sampler, wait_until: Callable[..., Any]) -> list[Sample]:
    one.start()
    wait_until(lambda: one.ended, 20, "the stream's end")
    one.stop()
    return one.take(1000)


def test_readings_are_stamped_and_numbered_in_order(wait_until: Callable[..., Any]) -> None:
    samples = finished(sampler([[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]), wait_until)
    assert [sample.values.tolist() for sample in samples] == [[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]
    assert [sample.number for sample in samples] == [0, 1, 2]
    assert samples[0].monotonic < samples[1].monotonic < samples[2].monotonic


def test_values_that_arent_finite_are_skipped_and_counted(wait_until: Callable[..., Any]) -> None:
    one = sampler([[[1, 2]], [[np.nan, 2]], [[3, np.inf], [1, 1]], [[5, 6]]])
    samples = finished(one, wait_until)
    assert [sample.values.tolist() for sample in samples] == [[[1, 2]], [[5, 6]]]
    assert one.skipped == 3
    assert samples[1].number - samples[0].number > 1, "the gap shows"


def test_a_sensor_that_raises_is_opened_again(wait_until: Callable[..., Any]) -> None:
    one = sampler([[[1, 2]], SensorError("cable"), [[3, 4]], ZeroDivisionError("bug"), [[5, 6]], [[1, 2, 3]], [[7, 8]]])
    samples = finished(one, wait_until)
    assert [sample.values[0, 0] for sample in samples] == [1, 3, 5, 7]
    assert one.failures == 3
    assert one.kind.opened == 4  # type: ignore[attr-defined]


def test_a_full_queue_drops_the_oldest_and_counts_it(wait_until: Callable[..., Any]) -> None:
    one = sampler([[[value, 0]] for value in range(20)], queue=5)
    samples = finished(one, wait_until)
    assert [sample.values[0, 0] for sample in samples] == [15, 16, 17, 18, 19]
    assert one.dropped == 15


def test_a_slow_reading_doesnt_shift_the_later_ones(wait_until: Callable[..., Any]) -> None:
    slow = sampler([[[1, 1]]] * 6, period_s=0.05)
    read = slow.kind.read  # type: ignore[attr-defined]
    pause = threading.Event()

    def late(self: Any) -> Any:
        if len(self.script) == 4:
            pause.wait(0.07)
        return read(self)

    slow.kind.read = late  # type: ignore[attr-defined]
    times = np.array([sample.monotonic for sample in finished(slow, wait_until)])
    late_by = (times - times[0]) / 0.05 % 1
    on_grid = np.minimum(late_by, 1 - late_by) < 0.4
    assert on_grid.sum() >= 5


def test_the_host_sensor_reads_real_values(wait_until: Callable[..., Any]) -> None:
    one = HostSensor({"core": 0})
    assert one.channels == CHANNELS
    busy = threading.Event()
    values = one.read().values
    deadline = SystemClock().monotonic() + 0.3
    while SystemClock().monotonic() < deadline:
        busy.is_set()
    values = one.read().values
    assert values.shape == (1, len(CHANNELS))
    assert np.isfinite(values).all()
    by_name = dict(zip([channel.name for channel in CHANNELS], values[0], strict=True))
    assert 0 <= by_name["core_load"] <= 100
    assert 0 < by_name["total_load"] <= 100, "this very loop is load"
    assert by_name["memory"] == pytest.approx(psutil.virtual_memory().percent, abs=10)
    assert by_name["context_switches"] > 0


def test_the_host_sensor_refuses_what_isnt_there() -> None:
    with pytest.raises(SettingsError, match="core = 9999"):
        HostSensor({"core": 9999})
    with pytest.raises(SettingsError, match="core"):
        HostSensor({"core": "first"})
    with pytest.raises(SettingsError, match="colour"):
        HostSensor({"colour": 1})
    with pytest.raises(SensorError, match="nowhere0"):
        HostSensor({"interface": "nowhere0"})


def test_replay_gives_rows_windows_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=np.arange(12, dtype=np.int8).reshape(2, 3, 2), y=np.array([1, 0]), channels=np.array(["a", "b"]))
    one = ReplaySensor({"file": str(path)})
    assert [channel.name for channel in one.channels] == ["a", "b"]
    first, second = one.read(), one.read()
    assert first is not None
    assert second is not None
    assert first.values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (first.label, second.label, type(first.label)) == (1, 0, int)
    with pytest.raises(EndOfStreamError):
        one.read()
    np.savez(path, X=np.ones((1, 2), np.float32), y=np.array([0.5]))
    looped = ReplaySensor({"file": str(path), "loop": True})
    readings = [looped.read() for _ in range(3)]
    assert all(reading is not None and reading.values.tolist() == [[1, 1]] for reading in readings)
    assert readings[0] is not None
    assert readings[0].label == 0.5


@pytest.mark.parametrize("content", ["missing", "text", "no X", "pickle", "rank", "labels"])
def test_replay_names_the_file_it_cant_use(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.npz"
    if content == "text":
        path.write_text("a,b\n1,2\n")
    elif content == "no X":
        np.savez(path, Z=np.ones(3))
    elif content == "pickle":
        np.savez(path, X=np.array([{"a": 1}], dtype=object))
    elif content == "rank":
        np.savez(path, X=np.ones(3))
    elif content == "labels":
        np.savez(path, X=np.ones((3, 2)), y=np.ones(4))
    with pytest.raises(SettingsError, match=r"data\.npz"):
        ReplaySensor({"file": str(path)})


def test_an_unknown_sensor_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="known: host, replay"):
        sensors.find("thermopile")


def test_the_example_of_an_own_sensor_works_as_an_entry_point(tmp_path: Path) -> None:
    """As a user would: a package of one module that names the entry point, found by `sensors.find`."""
    source = (PROJECT / "examples" / "own_sensor.py").read_text()
    entry = next(line for line in source.splitlines() if "own_sensor:" in line).strip("# ")
    (tmp_path / "own_sensor.py").write_text(source)
    metadata = tmp_path / "own_sensor-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-sensor\nVersion: 1.0\n")
    name, target = entry.replace('"', "").split(" = ")
    (metadata / "entry_points.txt").write_text(f"[pollen.sensors]\n{name} = {target}\n")
    code = (
        "from edge_client import sensors\n"
        f"sensor = sensors.find({name!r})({{}})\n"
        "readings = [sensor.read() for _ in range(3)]\n"
        "sensor.close()\n"
        "print(len(sensor.channels), [reading.values.shape for reading in readings])"
    )
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1 [(1, 1), (1, 1), (1, 1)]"
