"""Devices with ARM processors: the wheels for them really train, and learn what this machine learns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pollen import settings
from tests.arm.conftest import Compare
from tests.arm.models import MODELS
from tests.arm.userland import ARCHITECTURES, Userland
from tests.system.whole import Whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMIT = 1e-5
PLATFORMS = [
    pytest.param(name, runtime, id=f"{name}-{runtime}")
    for name, one in ARCHITECTURES.items()
    for runtime in one.runtimes
]


class WholeWithArm(Whole):
    """The real whole, its devices being programs of an emulated processor."""

    def __init__(self, python: Callable[..., Sequence[str]], *arguments: Any, **options: Any) -> None:
        self._python = python
        super().__init__(*arguments, **options)

    def _start(self, name: str, role: Any, chosen: Any) -> None:
        if role != "device":
            super()._start(name, role, chosen)
            return
        path = self.folder / f"{name}.toml"
        path.write_text(settings.to_toml(chosen, show_secrets=True), encoding="utf-8")
        command = self._python("-m", "edge_client.command", "--config", path)
        self._running[name] = self._processes.start(name, role, command, self.log(name))


@pytest.mark.parametrize(("architecture", "runtime"), PLATFORMS)
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_end_where_they_end_here(model: str, architecture: str, runtime: str, compare: Compare) -> None:
    _, _, losses, weights = compare(model, architecture, runtime)
    assert losses <= LIMIT
    assert weights <= LIMIT


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_pollen_edge_trains_in_a_fleet(
    architecture: str, emulated: Callable[[str], Userland], tmp_path: Path, mosquitto_binary: Path, bundle_file: Path
) -> None:
    python = emulated(architecture).python
    with WholeWithArm(python, tmp_path / "whole", mosquitto_binary, bundle_file, devices=("arm-1",)) as whole:
        whole.wait_for_merges(20, seconds=600)
        library = "ai-edge-litert 2.3" if "litert" in ARCHITECTURES[architecture].runtimes else "tflite-runtime 2.14"
        assert library in whole.log("arm-1").read_text()
        assert {merge["device"] for merge in whole.history()} == {"arm-1"}
        whole.stop("arm-1")
