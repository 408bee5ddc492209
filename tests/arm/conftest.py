"""The models compiled here, the emulated processors, and the table of how far the two are apart."""

import functools
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tflite
from tests.arm import userland
from tests.arm.models import MODELS
from tests.arm.packages import UnavailableError
from tests.arm.userland import PROJECT, Userland
from tests.system.conftest import bundle_file
from tests.training import case as cases

__all__ = ["bundle_file"]

STEPS_PROGRAM = PROJECT / "tests" / "training" / "device_steps.py"
VERSIONS = {"litert": "ai-edge-litert 2.", "tflite": "tflite-runtime 2.14"}
ANSWER_S = 300
Row = tuple[str, str, float, float]
Compare = Callable[[str, str, str], Row]
_table = pytest.StashKey[list[Row]]()


class Trainer:
    """A process that trains what it is told to, by `device_steps.py`; one that died is started again."""

    def __init__(self, python: list[str], runtime: str) -> None:
        self._command = [*python, str(STEPS_PROGRAM), runtime]
        self._runtime = runtime
        self._process: subprocess.Popen[bytes] | None = None

    def train(self, folder: Path) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                self._command,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{folder}\n".encode())
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_S)
        assert ready, f"no answer within {ANSWER_S} s"
        answer = process.stdout.readline().decode().strip()
        assert answer.startswith(VERSIONS[self._runtime]), answer or f"it died: {process.wait(10)}"
        with np.load(folder / f"{self._runtime}.npz") as arrays:
            return dict(arrays)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(scope="session")
def emulated() -> Callable[[str], Userland]:
    """`emulated(name)`: the userland of ARCHITECTURES[name]; skips the test where there can't be one."""

    @functools.cache
    def made(name: str) -> Userland | str:
        try:
            return userland.make(name, lambda line: print(line, file=sys.__stderr__))
        except UnavailableError as error:
            return str(error)

    def emulate(name: str) -> Userland:
        found = made(name)
        if isinstance(found, str):
            pytest.skip(f"emulated {name}: {found}")
        return found

    return emulate


@pytest.fixture(scope="session")
def compare(
    emulated: Callable[[str], Userland], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Compare]:
    """`compare(model, architecture, runtime)`: trains it here and there; a row of the table, with the largest
    absolute differences of the losses and of the weights and state."""
    trainers: dict[tuple[str, str], Trainer] = {}

    @functools.cache
    def folder_of(model: str) -> Path:
        folder = tmp_path_factory.mktemp(model)
        _, bundle = cases.compiled(MODELS[model])
        cases.write(MODELS[model], bundle, folder)
        return folder

    def python(architecture: str, runtime: str) -> list[str]:
        if architecture != "here":
            return emulated(architecture).python()
        return [sys.executable if runtime == "litert" else tflite.python()]

    @functools.cache
    def trained(model: str, architecture: str, runtime: str) -> dict[str, Any]:
        key = architecture, runtime
        if key not in trainers:
            trainers[key] = Trainer(python(*key), runtime)
        return trainers[key].train(folder_of(model))

    def run(model: str, architecture: str, runtime: str) -> Row:
        there, here = trained(model, architecture, runtime), trained(model, "here", runtime)
        apart = {name: np.max(np.abs(there[name] - here[name]), initial=0) for name in ("losses", "weights", "state")}
        row = (model, f"{architecture} {runtime}", float(apart["losses"]), float(max(apart["weights"], apart["state"])))
        request.config.stash.setdefault(_table, []).append(row)
        assert np.abs(here["weights"]).max() > 0
        return row

    yield run
    for trainer in trainers.values():
        trainer.stop()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(_table, [])
    if not table:
        return
    terminalreporter.section("20 steps on emulated ARM against this machine: largest absolute differences")
    terminalreporter.line(f"{'model':<24}{'processor, runtime':<20}{'losses':>10}{'weights':>10}")
    for model, where, losses, weights in table:
        terminalreporter.line(f"{model:<24}{where:<20}{losses:>10.1e}{weights:>10.1e}")
