"""Two models in one pollen-server, each trained by a real device, through one gateway and one broker."""

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client.settings import EdgeSettings
from pollen.bundle import Bundle
from server import lifecycle
from server.settings import ModelSettings, Settings
from tests.system.whole import MODEL, Whole, read

OTHER = "other"


class TwoModels(Whole):
    """`trains`: the model that each device is set up for; `models`: the bundle of each."""

    def __init__(self, folder: Path, binary: Path, models: dict[str, Path]) -> None:
        self.trains = {"pi-1": MODEL, "pi-2": OTHER}
        self.models = models
        super().__init__(folder, binary, models[MODEL], devices=("pi-1", "pi-2"))

    def _start(self, name: str, role: Any, chosen: Any) -> None:
        if isinstance(chosen, EdgeSettings):
            chosen = dataclasses.replace(chosen, model=self.trains[name])
        if isinstance(chosen, Settings):
            tables = {item.name: getattr(chosen, item.name) for item in dataclasses.fields(ModelSettings)}
            models = {model: ModelSettings(**tables | {"bundle": path}) for model, path in self.models.items()}
            chosen = dataclasses.replace(chosen, bundle=None, models=models)
        super()._start(name, role, chosen)

    def model_version(self, model: str) -> int:
        """The committed version of one of the models."""
        try:
            (found,) = read(self.folder / "server" / model / lifecycle.STATE, "SELECT version FROM model")
        except (ValueError, sqlite3.Error):
            return 0
        return int(found[0])

    def merged(self, model: str) -> Counter[str]:
        """How many updates of each device one of the models has merged."""
        path = self.folder / "server" / model / lifecycle.HISTORY
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(entry["device"] for entry in map(json.loads, lines) if entry["event"] == "merge")

    def go_on(self, more: int) -> None:
        """Wait until each model has merged `more` updates from now on."""
        targets = {model: self.model_version(model) + more for model in (MODEL, OTHER)}
        self.wait_for(
            lambda: all(self.model_version(model) >= target for model, target in targets.items()), 90, f"{targets}"
        )


@pytest.fixture
def two(tmp_path: Path, mosquitto_binary: Path, bundle_file: Path) -> Iterator[TwoModels]:
    first = Bundle.read(bundle_file)
    manifest = dataclasses.replace(first.manifest, model=OTHER)
    dataclasses.replace(first, manifest=manifest).write(tmp_path / "other.bundle")
    models = {MODEL: bundle_file, OTHER: tmp_path / "other.bundle"}
    with TwoModels(tmp_path / "whole", mosquitto_binary, models) as running:
        yield running


def test_each_device_trains_its_model_through_a_kill_and_a_rollback_and_may_be_set_up_for_the_other(
    two: TwoModels,
) -> None:
    two.go_on(5)
    two.kill("server")
    two.restart("server")
    two.go_on(5)
    assert set(two.merged(MODEL)) == {"pi-1"}
    assert set(two.merged(OTHER)) == {"pi-2"}

    two.stop("server")
    earlier = lifecycle.kept_versions(two.folder / "server" / OTHER)[-3].version
    newest = lifecycle.roll_back(two.folder / "server" / OTHER, earlier)
    two.restart("server")
    two.go_on(5)
    assert two.model_version(OTHER) >= newest + 5

    two.stop("pi-2")
    two.trains["pi-2"] = MODEL
    two.start_device("pi-2")
    two.wait_for(lambda: two.merged(MODEL)["pi-2"] >= 3, 90, "pi-2 goes on with its new model")
    two.stop("pi-2")
    two.trains["pi-2"] = OTHER
    two.start_device("pi-2")
    two.go_on(3)
    two.stop("pi-1", "pi-2", "gateway-1", "server")
    for model in (MODEL, OTHER):
        assert lifecycle.export(two.folder / "server" / model).bundle.manifest.model == model
