"""The MotionSense benchmark's fleet: who sees what, and that all methods send alike. Its devices run the real code."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.motionsense import METHODS, build
from benchmarks.motionsense_device import How, StreamingDevice
from benchmarks.motionsense_fleet import Fleet, Outcome, Person, people
from benchmarks.simulated_fleet import MOTIONSENSE
from pollen.bundle import Bundle

PROJECT = Path(__file__).parents[2]
HOW = How(updates=6, epochs=2, steps=8)

needs_data = pytest.mark.skipif(not MOTIONSENSE.is_file(), reason=f"{MOTIONSENSE} isn't here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tmp_path_factory.mktemp("model"), 1, 0.01)[0]


def _person(seed: int, windows: int = 48) -> Person:
    """Two activities one after the other, told apart by the level of a channel."""
    chance = np.random.default_rng(seed)
    labels = np.repeat([0, 3], windows // 2)
    values = chance.normal(0, 0.1, (windows, 128, 6)).astype(np.float32)
    values[..., 0] += labels[:, None]
    return Person(values, labels, labels, values[::4], labels[::4])


def _run(bundle: Bundle, method: Callable[[Fleet], Outcome], how: How = HOW) -> Outcome:
    with closing(Fleet(bundle, [_person(0), _person(1), _person(2, 60)], how, 0, lambda _text: None)) as fleet:
        return method(fleet)


@needs_data
def test_people_come_in_the_order_of_time_and_their_tests_are_other_recordings() -> None:
    whole, halves = people(128, 2), people(64, 2)
    assert len(people(128)) == 16
    for person, finer in zip(whole, halves, strict=True):
        assert (np.diff(person.trials) >= 0).all()
        assert person.trials.max() < 10
        assert all(len(set(person.labels[person.trials == trial])) == 1 for trial in set(person.trials))
        np.testing.assert_array_equal(person.readings.reshape(-1, 6), finer.readings.reshape(-1, 6))
        assert len(finer.labels) == 2 * len(person.labels)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_sends_as_many_updates(bundle: Bundle, method: str) -> None:
    found = _run(bundle, METHODS[method])
    # A device that waits for the version its update went into may lose one at the end.
    assert found.updates == 18 if method in ("alone", "FedAvg") else 15 <= found.updates <= 18
    assert len(found.prequential) == 10
    assert np.mean(found.final) > 0.9


def test_a_device_scores_each_window_before_it_learns_it(bundle: Bundle, tmp_path: Path) -> None:
    person = _person(0)
    with closing(StreamingDevice("pi-1", tmp_path, bundle, HOW, 8)) as device:
        for at, (reading, label) in enumerate(zip(person.readings, person.labels, strict=True)):
            device.observe(reading, int(label), float(at))
            assert len(device.errors) == at + 1
        output = device.accuracy(bundle.shared, person.readings, person.labels)
        assert 1 - np.mean(device.errors) == pytest.approx(output)  # it was never given a task


def test_the_encodings_differ_in_bytes(bundle: Bundle) -> None:
    sizes = [_run(bundle, METHODS["adaptive"], replace(HOW, encoding=name)).sent_bytes for name in ("f32", "f16", "q8")]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.6 * sizes[2]


@needs_data
@pytest.mark.timeout(600)
def test_the_quick_run_prints_its_table() -> None:
    command = [sys.executable, "-m", "benchmarks.motionsense", "--quick", "--methods", "alone", "adaptive"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("  alone ", "  adaptive ")) for line in lines) == 4
