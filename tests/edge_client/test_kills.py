"""A device that is killed with SIGKILL at random points while it learns and uploads, on a real broker."""

import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_client.learning.sample_block import Block
from pollen import messages
from pollen.bundle import Bundle
from pollen.messages import Birth
from tests.edge_client.fleet import LIMIT, Device, Server

Devices = Callable[..., Device]
Bundles = Callable[[str], Bundle]

PERIOD_S = 0.002
FLUSH_S = 0.2
TURN_S = 1.5  # for one turn of a loop that shares two cores with everybody else's tests
LIFE = 60_000  # readings, so that a value of the counter tells its life; float32 counts to 279 of them
READINGS = 30_000


class Merger:
    """Answers as the server does: each task is merged once, whatever is delivered again gets the same receipt."""

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self._server = server
        self._bundle = bundle
        self._at = 0
        self._merged: dict[bytes, bytes] = {}
        self._open = b""
        self.seq = 0
        self.births = 0
        self.repeated = 0

    @property
    def merged(self) -> int:
        return len(self._merged)

    def step(self) -> None:
        """Take what has come since."""
        while self._at < len(self._server.received):
            _, leaf, payload = self._server.received[self._at]
            self._at += 1
            if leaf == "state" and isinstance(messages.decode_state(payload), Birth):
                self.births += 1
                self._ask()
            elif leaf == "update":
                self._take(payload)
            elif leaf == "result":
                result = messages.decode_result(payload)
                pytest.fail(f"the device refused a task: {result.error}")

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Answer until `until`, for at most `seconds`; whether it came."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step()
            if until():
                return True
            time.sleep(0.005)
        return False

    def run_to_birth(self, births: int, seconds: float) -> bool:
        """Answer until the device has been born so often; whether it came."""
        return self.run(lambda: self.births >= births, seconds)

    def _ask(self) -> None:
        if not self._open:
            self._open = random.randbytes(16)
        self._server.task(self._bundle, version=1, config={"min_samples": 16, "max_steps": 10}, task=self._open)

    def _take(self, payload: bytes) -> None:
        update = messages.decode_update(payload, LIMIT)
        known = self._merged.get(update.task)
        if known is None:
            assert update.task == self._open, "an update for a task that nobody gave"
            assert update.seq > self.seq
            assert update.steps > 0
            self._merged[update.task], self.seq = payload, update.seq
            self._server.receipt(update)
            self._open = b""
            self._ask()
        else:
            assert payload == known, "what was handed over must never change"
            self.repeated += 1
            self._server.receipt(update)


@pytest.fixture
def merger(server: Server, bundles: Bundles) -> Merger:
    bundle = bundles("forecast")
    server.publish_model(bundle, 1)
    return Merger(server, bundle)


def recording(folder: Path, life: int) -> Path:
    """A sine beside a counter that goes on from life * LIFE."""
    t = np.arange(READINGS)
    path = folder / f"life-{life}.npz"
    np.savez(path, X=np.stack([np.sin(t / 5), life * LIFE + t], axis=1).astype(np.float32))
    return path


def check_wreck(state: Path, copy: Path) -> list[Block]:
    """Open copies of what a kill left, as the next life will; returns the blocks of samples."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    found: list[Block] = []
    for path in state.glob("*.sqlite*"):
        assert "damaged" not in path.name
        shutil.copy(path, copy / path.name)
    for path in copy.glob("*.sqlite"):
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "block" in tables:
                found = [Block(payload) for (payload,) in database.execute("SELECT payload FROM block ORDER BY id")]
        database.close()
    return found


def check_samples(blocks: list[Block], life: int, alive_since: float | None, killed_at: float) -> int:
    """What was accepted before the window is there, without a hole; returns the samples of this life."""
    values = np.concatenate([block.values[:, 1] for block in blocks]) if blocks else np.zeros(0)
    times = np.concatenate([block.readings["monotonic"] for block in blocks]) if blocks else np.zeros(0)
    own = values >= life * LIFE
    window = FLUSH_S + TURN_S
    if own.any():
        np.testing.assert_array_equal(values[own], life * LIFE + np.arange(own.sum()))
        assert times[own][-1] >= killed_at - window
    else:
        assert alive_since is None or killed_at - alive_since <= window
    return int(own.sum())


def kill_again_and_again(kills: int, merger: Merger, device: Devices, folder: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    kept = 0
    for life in range(kills):
        sensor = {"kind": "replay", "period_s": PERIOD_S, "options": {"file": str(recording(folder, life))}}
        births = merger.births
        one = device(wait=False, sensor=sensor, storage={"flush_s": FLUSH_S}, training={"slice_ms": 10})
        alive_since = None
        if chance.random() < 0.2:
            merger.run(lambda: False, chance.uniform(0.0, 1.5))  # while it starts
        else:
            assert merger.run_to_birth(births + 1, 60), f"life {life} was never born; log:\n{one.log()}"
            alive_since = time.monotonic()
            merger.run(lambda: False, chance.uniform(0.0, 2.0))
        killed_at = time.monotonic()
        one.kill()
        (folder / f"life-{life}.npz").unlink()
        merger.step()
        kept += check_samples(check_wreck(one.state_dir, folder / "copy"), life, alive_since, killed_at)
    last = device(wait=False, sensor={"period_s": PERIOD_S}, storage={"flush_s": FLUSH_S})
    merged = merger.merged
    assert merger.run(lambda: merger.merged >= merged + 3, 60), f"the last life sends no updates; log:\n{last.log()}"
    assert "damaged" not in last.log()
    assert last.terminate() == 0
    merger.step()
    print(f"{kills} kills, {merger.merged} updates merged, {merger.repeated} delivered again, {kept} samples kept")
    assert merger.merged >= kills // 2
    assert kept >= 50 * kills


@pytest.mark.timeout(400)
def test_a_device_killed_at_20_random_points_loses_and_doubles_nothing(
    merger: Merger, device: Devices, tmp_path: Path
) -> None:
    kill_again_and_again(20, merger, device, tmp_path, seed=random.randrange(2**32))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_device_killed_at_200_random_points_loses_and_doubles_nothing(
    merger: Merger, device: Devices, tmp_path: Path
) -> None:
    kill_again_and_again(200, merger, device, tmp_path, seed=random.randrange(2**32))
