"""A graph that only predicts, from the server's newest weights to a device's predictions, through the real whole."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.settings import EdgeSettings, Inference
from server.inference_graphs import InferenceSettings
from server.settings import Tasks
from tests.system.whole import Whole

MAKING_S = 120.0


class Predicting(Whole):
    """Devices that predict with published graphs."""

    def _start(self, name: str, role: Any, chosen: Any) -> None:
        if isinstance(chosen, EdgeSettings):
            chosen = dataclasses.replace(chosen, inference=Inference("always"))
        super()._start(name, role, chosen)

    def is_ready(self, device: str, times: int) -> bool:
        """Whether `device` has loaded a graph so many times."""
        return self.log(device).read_text().count("inference graph of version 0, float32, is ready to predict") >= times


@pytest.fixture
def whole(tmp_path: Path, mosquitto_binary: Path, bundle_file: Path) -> Iterator[Predicting]:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "heldout.npz", x=rng.normal(size=(50, 4, 2)), y=rng.normal(size=(50, 2)))
    changes = {
        # Nobody trains, so that the first version stays the newest.
        "task": Tasks(config={"min_samples": 1_000_000}),
        "inference": InferenceSettings(("dynamic", "float32"), holdout=tmp_path / "heldout.npz", every_s=0.1),
    }
    folder = tmp_path / "whole"
    with Predicting(folder, mosquitto_binary, bundle_file, devices=("pi-1",), server_changes=changes) as running:
        yield running


def test_a_published_graph_reaches_the_devices_and_goes_with_the_server_that_made_it(whole: Predicting) -> None:
    whole.wait_for(lambda: whole.is_ready("pi-1", 1), MAKING_S, "a graph on the device")
    (made,) = whole.history("inference")
    assert (made["version"], made["kind"]) == (0, "float32")  # so small a model grows when it is quantised
    assert made["error"] == pytest.approx(made["float_error"], rel=1e-3)
    kept = whole.folder / "pi-1" / "model" / "current.infer"
    whole.wait_for(kept.exists, 10, "the graph on the device's disk")
    whole.kill("server")
    whole.restart("server")  # may have begun anew: its own graph is the one that counts
    whole.wait_for(lambda: whole.is_ready("pi-1", 2), MAKING_S, "the new server's graph on the device")
    whole.stop("pi-1", "gateway-1", "server")
    assert len(whole.history("inference")) == 2
