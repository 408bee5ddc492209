"""The stream store with a real learner: what a restart brings back, what is damaged, and what stays bounded."""

import os
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_client.ballast import Ballast
from edge_client.learning import sample_block, stream_store
from edge_client.learning.learner import Learner
from edge_client.learning.sample_block import Block
from edge_client.learning.standardise import Standardiser
from edge_client.learning.stream_store import StreamStore
from edge_client.sensors import Channel
from edge_client.sensors.sampling import Sample
from edge_client.settings import Drift, Storage
from edge_client.settings import Learner as LearnerSettings
from pollen.bundle import Bundle
from pollen.interpreter import TrainingGraph, load

Bundles = Callable[[str], Bundle]
CHANNELS = (Channel("a", "V"), Channel("b", "V"))
SETTINGS = LearnerSettings(replay_samples=200)


class ManualClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def synchronised(self) -> bool | None:
        return None

    def wait(self, event: threading.Event, seconds: float) -> bool:  # noqa: ARG002
        return event.is_set()


class Device:
    """One life of a process: a store, a learner, and a stream that goes on from `number`."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        settings: LearnerSettings = SETTINGS,
        *,
        storage: Storage | None = None,
        channels: tuple[Channel, ...] = CHANNELS,
        ballast: Ballast | None = None,
        drift: Drift | None = None,
    ) -> None:
        self.graph: TrainingGraph = load(bundle)
        self.bundle = bundle
        self.clock = ManualClock()
        self.learner = Learner(
            self.graph, settings, len(channels), Standardiser(len(channels), settings.memory_samples), drift=drift
        )
        storage = storage or Storage()
        ballast = ballast or Ballast(folder / "ballast", 0)
        self.store = StreamStore(folder / "stream.sqlite", storage, settings, ballast, self.clock)
        self.store.use_channels(channels)
        self.store.attach(self.learner, bundle.manifest)

    def see(self, samples: Sequence[Sample]) -> None:
        self.learner.observe(samples, self.bundle.weights, self.bundle.state)
        self.store.add(samples)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.store.flush()


def wave(first: int, count: int, *, label: Callable[[int], int | float | None] = lambda _: None) -> list[Sample]:
    """Readings numbered from `first`, at 1 Hz, whose values follow from their numbers."""
    t = np.arange(first, first + count)
    values = np.stack([np.sin(t / 3), t], axis=1).astype(np.float32)
    return [Sample(n, 5.0 + n, 1e9 + n, values[n - first : n - first + 1], label(n)) for n in t.tolist()]


def examples(learner: Learner) -> list[bytes]:
    """The buffer's examples."""
    x, y = learner.buffer.take(np.arange(len(learner.buffer)))
    return sorted(row.tobytes() + target.tobytes() for row, target in zip(x, y, strict=True))


def test_a_block_gives_back_its_readings() -> None:
    rng = np.random.default_rng(0)
    labels: list[float | int | None] = [None, 3, 2.5, None, 0]
    readings = [
        Sample(10 + 3 * n, 1e6 + n / 7, 2e9 - n, rng.normal(size=(1 + n, 3)).astype(np.float32), label, n % 2 == 0)
        for n, label in enumerate(labels)
    ]
    found = list(Block(sample_block.encode(readings)).samples(number_shift=-5, time_shift=-1e6))
    for before, after in zip(readings, found, strict=True):
        assert (after.number, after.wall, after.label) == (before.number - 5, before.wall, before.label)
        assert type(after.label) is type(before.label)
        assert after.monotonic == before.monotonic - 1e6
        assert after.synchronised == before.synchronised
        np.testing.assert_array_equal(after.values, before.values)
    payload = sample_block.encode(readings)
    for damaged in (b"", payload[:-4], payload[:50], payload + b"1234", b"\xff" * 100):
        with pytest.raises(ValueError, match=r"."):
            Block(damaged)


def test_after_a_restart_buffer_statistics_and_scores_are_as_before(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"))
    for first in range(0, 1000, 50):
        one.see(wave(first, 50))
        one.later(60)
    one.learner.trained_total = one.learner.buffer.total - 30
    one.store.close()
    two = Device(tmp_path, bundles("forecast"))
    assert two.learner.buffer.total - two.learner.trained_total == 30, "what a training knew is no new example"
    assert len(two.learner.buffer) == len(one.learner.buffer) == 200
    recent = set(examples(one.learner)) & set(examples(two.learner))
    assert len(recent) >= 50, "the reservoir as it was"
    assert two.learner.state() == one.learner.state()
    seen, kept = two.learner.buffer.total, two.learner.buffer.reservoir_state()
    two.see(wave(0, 60))
    assert two.learner.buffer.total == seen + 56, "a restart is a gap: 4 readings fill a window anew"
    assert two.learner.buffer.reservoir_state()["seen"] == kept["seen"] + 56
    two.store.close()


def test_what_a_drift_made_the_learner_forget_stays_forgotten(tmp_path: Path, bundles: Bundles) -> None:
    def device() -> Device:
        settings = LearnerSettings(replay_samples=200, standardise=False)
        return Device(tmp_path, bundles("forecast"), settings, drift=Drift(keep_samples=32))

    one = device()
    rng = np.random.default_rng(2)
    for number in range(1000):
        values = rng.normal(size=(1, 2)).astype(np.float32) * (1 if number < 600 else 3000)
        one.see([Sample(number, 5.0 + number, 0.0, values, None)])
        if number == 590:
            one.later(60)
        if one.learner.drifts:
            break
    assert number > 600
    assert (one.learner.drifts, len(one.learner.buffer)) == (1, 32)
    one.store.flush()  # and then the power is cut
    two = device()
    assert examples(two.learner) == examples(one.learner)
    two.store.close()
    one.store.close()


def test_a_reservoir_larger_than_the_file_may_be_costs_no_samples(tmp_path: Path, bundles: Bundles) -> None:
    settings = LearnerSettings(replay_samples=40_000, reservoir_share=0.9, standardise=False)
    one = Device(tmp_path, bundles("forecast"), settings, storage=Storage(limit_bytes=2**18))
    for first in range(0, 30_000, 1000):
        one.see(wave(first, 1000))
        one.later(3600)
    assert one.store.dropped == 0
    assert one.store.samples > 1000
    one.store.close()


def test_examples_made_again_are_those_of_the_samples(tmp_path: Path, bundles: Bundles) -> None:
    """Without standardisation, which would scale by the statistics of now, they are the very same."""
    settings = LearnerSettings(replay_samples=200, standardise=False)
    one = Device(tmp_path, bundles("forecast"), settings)
    for first in range(0, 1000, 50):
        one.see(wave(first, 50))
        one.later(60)
    one.store.close()
    two = Device(tmp_path, bundles("forecast"), settings)
    assert examples(two.learner) == examples(one.learner)
    two.store.close()


def test_readings_of_two_lives_make_no_common_window(tmp_path: Path, bundles: Bundles) -> None:
    settings = LearnerSettings(replay_samples=200, standardise=False)
    for first in (0, 10, 20):  # numbers that go on as if nothing had been
        one = Device(tmp_path, bundles("forecast"), settings)
        one.see(wave(first, 10))
        one.store.close()
    assert len(one.learner.buffer) == 3 * (10 - 4)
    assert one.store.samples == 0
    two = Device(tmp_path, bundles("forecast"), settings)
    assert len(two.learner.buffer) == 3 * (10 - 4)
    assert two.store.samples == 30
    two.store.close()


def test_a_kill_loses_what_was_not_flushed_and_nothing_else(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"), LearnerSettings(replay_samples=200, standardise=False))
    one.see(wave(0, 100))
    one.later(60)
    one.see(wave(100, 30))
    two = Device(tmp_path, bundles("forecast"), LearnerSettings(replay_samples=200, standardise=False))
    assert two.store.samples == 100
    assert len(two.learner.buffer) == 96
    two.store.close()


def test_a_late_label_is_there_after_a_restart(tmp_path: Path, bundles: Bundles) -> None:
    settings = LearnerSettings(target="label", replay_samples=200, standardise=False)
    one = Device(tmp_path, bundles("classes"), settings)
    one.see(wave(0, 100))
    one.later(60)
    one.see(wave(100, 100))
    one.store.label(2.0, 5.0 + 50, 5.0 + 59)
    one.later(60)
    one.store.label(1.0, 5.0 + 150, 5.0 + 159)
    one.store.label(0.0, 5.0 + 155, 5.0 + 155)
    one.store.close()
    assert len(one.learner.buffer) == 0
    two = Device(tmp_path, bundles("classes"), settings)
    x, y = two.learner.buffer.take(np.arange(len(two.learner.buffer)))
    assert x[:, -1, 1].tolist() == [*range(50, 60), *range(150, 160)]
    assert y.ravel().tolist() == [2] * 10 + [1] * 5 + [0] + [1] * 4
    two.store.close()


def test_another_model_gets_the_samples_but_not_the_reservoir(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"))
    one.see(wave(0, 1000, label=lambda number: number % 3))
    one.store.close()
    settings = LearnerSettings(target="label", replay_samples=200)
    two = Device(tmp_path, bundles("classes"), settings)
    assert len(two.learner.buffer) == 150, "as many as the ring holds"
    assert two.learner.buffer.reservoir_state() == {"seen": 0}
    two.see(wave(0, 500, label=lambda number: number % 3))
    two.store.close()
    three = Device(tmp_path, bundles("classes"), settings)
    assert len(three.learner.buffer) == 200
    three.store.close()


def test_a_model_that_comes_while_running_gets_what_was_seen(tmp_path: Path, bundles: Bundles) -> None:
    settings = LearnerSettings(replay_samples=200, standardise=False)
    one = Device(tmp_path, bundles("forecast"), settings)
    one.see(wave(0, 100))
    other = Learner(one.graph, settings, 2, Standardiser(2, 100))
    one.store.attach(other, one.bundle.manifest)
    assert len(other.buffer) == 96
    other.observe(wave(100, 10), one.bundle.weights, one.bundle.state)
    assert len(other.buffer) == 96 + 10 - 4, "what it takes up begins with a gap"
    one.store.close()


def test_other_channels_begin_a_new_stream(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"))
    one.see(wave(0, 1000))
    one.store.close()
    two = Device(tmp_path, bundles("forecast"), channels=(Channel("a", "V"), Channel("c", "V")))
    assert (len(two.learner.buffer), two.store.samples) == (0, 0)
    two.store.close()


def test_nothing_is_kept_where_that_is_the_setting(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"), storage=Storage(keep=False))
    one.see(wave(0, 1000))
    one.later(100)
    one.store.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "readings"), [(2**18, 80_000), (2**26, 120_000)])
def test_the_file_stops_growing(tmp_path: Path, bundles: Bundles, limit: int, readings: int) -> None:
    one = Device(tmp_path, bundles("forecast"), storage=Storage(limit_bytes=limit))
    sizes = []
    for first in range(0, readings, 1000):
        one.see(wave(first, 1000))
        one.later(600)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    most = min(limit, stream_store.KEPT_BYTES + 2**19) + 2**20 + 2**17  # and the log
    assert max(sizes) <= most
    half = len(sizes) // 2
    assert max(sizes[half:]) <= 1.1 * max(sizes[:half])
    assert one.store.samples >= min(limit // 2, stream_store.KEPT_BYTES) / 39 * 0.5
    one.store.close()
    two = Device(tmp_path, bundles("forecast"))
    assert len(two.learner.buffer) == 200
    two.store.close()


def test_a_flood_is_written_before_its_time(tmp_path: Path, bundles: Bundles) -> None:
    one = Device(tmp_path, bundles("forecast"))
    for first in range(0, 10_000, 100):
        one.store.add(wave(first, 100))
    assert one.store.samples >= 10_000 - stream_store.BATCH_READINGS
    for _ in range(2 * stream_store.LATE_LABELS):
        one.store.label(1.0, 0.0, 1.0)
    one.store.close()
    with sqlite3.connect(tmp_path / "stream.sqlite") as database:
        assert database.execute("SELECT count(*) FROM late_label").fetchone() == (10_000,)
    database.close()


def test_a_large_state_is_written_less_often(tmp_path: Path, bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    one = Device(tmp_path, bundles("forecast"), storage=Storage(flush_s=60))
    encode = stream_store.cbor.encode

    def counting(value: object) -> bytes:
        nonlocal written
        payload = encode(value)
        written += len(payload)
        return payload

    monkeypatch.setattr(stream_store.cbor, "encode", counting)
    monkeypatch.setattr(one.learner, "state", lambda: {"many": np.zeros(5000)})
    for first in range(0, 86400, 600):  # a day of 600 s flushes
        one.see(wave(first, 10))
        one.later(600)
    assert 2e6 < written < 5e6
    one.store.close()


# --- damage


def _stored(folder: Path, bundles: Bundles) -> Path:
    one = Device(folder, bundles("forecast"))
    for first in range(0, 1000, 50):
        one.see(wave(first, 50))
        one.later(60)
    one.store.close()
    return folder / "stream.sqlite"


@pytest.mark.parametrize("table", ["block", "example", "state"])
def test_rows_with_a_wrong_checksum_are_left_out_and_counted(tmp_path: Path, bundles: Bundles, table: str) -> None:
    path = _stored(tmp_path, bundles)
    statement = {
        "block": "UPDATE block SET payload = CAST(payload || x'77' AS BLOB) WHERE id = 18",
        "example": "UPDATE example SET example = CAST(example || x'77' AS BLOB) WHERE place = 7",
        "state": "UPDATE state SET value = CAST(value || x'77' AS BLOB) WHERE name = 'learner'",
    }[table]
    with sqlite3.connect(path) as database:
        assert database.execute(statement).rowcount == 1
    database.close()
    two = Device(tmp_path, bundles("forecast"))
    assert two.store.damaged == 1
    # Lost statistics are learned again from the samples, and the first of them can't be scaled yet.
    expected = {"block": 50 + 46 + 96, "example": 199, "state": 200}[table]
    assert expected - 10 <= len(two.learner.buffer) <= expected
    two.see(wave(0, 100))
    two.store.close()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_power_cut_leaves_of_the_files_the_store_opens(tmp_path: Path, bundles: Bundles, seed: int) -> None:
    """Database and log cut off, filled with noise, or with zeros, at random places."""
    chance = random.Random(seed)
    one = Device(tmp_path, bundles("forecast"))
    for first in range(0, 1000, 50):
        one.see(wave(first, 50))
        one.later(60)
        if first == 500:
            assert one.store._database is not None
            one.store._database._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    wreck = tmp_path / "wreck"
    wreck.mkdir()
    for name in ("stream.sqlite", "stream.sqlite-wal"):
        content = bytearray((tmp_path / name).read_bytes())
        for _ in range(chance.choice([0, 1, 3])):
            at = chance.randrange(len(content))
            how = chance.choice(["cut", "noise", "zeros"])
            size = chance.choice([1, 100, 1024, 10_000])
            if how == "cut":
                del content[at:]
            else:
                size = min(size, len(content) - at)
                content[at : at + size] = chance.randbytes(size) if how == "noise" else bytes(size)
            if not content:
                break
        (wreck / name).write_bytes(content)
    one.store.close()
    two = Device(wreck, bundles("forecast"))
    assert np.isfinite(two.learner.buffer.take(np.arange(len(two.learner.buffer)))[0]).all()
    two.see(wave(0, 300))
    two.later(60)
    assert two.store.dropped == 0 or two.store.damaged or (wreck / "stream.sqlite.damaged").exists()
    two.later(60)
    two.see(wave(300, 100))
    two.store.close()
    three = Device(wreck, bundles("forecast"))
    assert len(three.learner.buffer) >= 90
    three.store.close()


def test_a_file_that_is_no_database_is_put_aside(
    tmp_path: Path, bundles: Bundles, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stream.sqlite").write_bytes(os.urandom(10_000))
    one = Device(tmp_path, bundles("forecast"))
    assert "stream.sqlite is damaged" in caplog.text
    one.see(wave(0, 100))
    one.store.close()
    assert (tmp_path / "stream.sqlite.damaged").stat().st_size == 10_000
    two = Device(tmp_path, bundles("forecast"))
    assert two.store.samples == 100
    two.store.close()


def test_a_folder_that_cant_be_written_costs_only_the_memory(tmp_path: Path, bundles: Bundles) -> None:
    (tmp_path / "stream.sqlite").mkdir()
    one = Device(tmp_path, bundles("forecast"))
    one.see(wave(0, 100))
    one.later(60)
    assert one.store.dropped == 100
    assert len(one.learner.buffer) > 0
    (tmp_path / "stream.sqlite").rmdir()
    one.see(wave(100, 100))
    one.later(60)
    assert one.store.samples == 100
    one.store.close()
