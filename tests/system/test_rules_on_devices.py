"""Rules that need the devices' help, on real devices: residuals (area) and lazy upload (paflm)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pollen.bundle import Bundle
from server.settings import Merging, Tasks
from tests.system.whole import TASK, Whole, read

DEVICES = ("pi-1", "pi-2")


def contribution(running: Whole, device: str) -> np.ndarray:
    """The model [P] float64 that the device keeps as its last merged one."""
    ((vector,),) = read(running.folder / device / "outbox.sqlite", "SELECT vector FROM contribution")
    return np.frombuffer(vector, np.float32).astype(np.float64)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("encoding", ["f32", "q8", "topk"])
def test_with_area_the_model_is_the_mean_of_the_devices_last_models_whatever_is_killed(
    whole: Callable[..., Whole], bundle_file: Path, encoding: str
) -> None:
    task = Tasks(ttl_s=20.0, config={**TASK, "encoding": encoding})
    running = whole(devices=DEVICES, server_changes={"merge": Merging("area"), "task": task})
    running.wait_for_merges(4)
    for name in ("pi-1", "server"):
        running.kill(name)
        running.restart(name)
        running.wait_for_merges(4)
    running.stop(*DEVICES)
    running.stop("server")
    with np.load(running.folder / "server" / "final.npz") as final:
        model = np.concatenate([final[tensor.name].ravel() for tensor in Bundle.read(bundle_file).manifest.shared])
    mean = sum(contribution(running, name) for name in DEVICES) / len(DEVICES)
    np.testing.assert_allclose(model, mean, atol=1e-5)
    assert {merge["weight"] for merge in running.history()} == {1.0, 0.5}
    assert running.history("rejection") == []


@pytest.mark.timeout(180)
def test_with_paflm_devices_keep_small_updates_back_and_the_server_gets_the_larger_ones(
    whole: Callable[..., Whole],
) -> None:
    task = Tasks(ttl_s=20.0, config={**TASK, "skips": 3})
    running = whole(devices=DEVICES, server_changes={"merge": Merging("paflm", {"lazy": 2.0}), "task": task})
    running.wait_for_merges(8)
    running.stop(*DEVICES)
    running.stop("server")
    for name in DEVICES:
        assert "is small and kept back" in running.log(name).read_text(encoding="utf-8")
    merges = running.history()
    assert any(merge["samples"] >= 4 * int(TASK["min_samples"]) for merge in merges), "an update of four trainings"
    assert running.history("rejection") == []
