"""The two device interpreters, each in a process of its own, and the table of how near they came to Keras."""

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pollen
from tests import tflite
from tests.training import case as cases
from tests.training.case import Case, Difference

STEPS_PROGRAM = Path(__file__).with_name("device_steps.py")
ANSWER_S = 120
Agrees = Callable[..., None]
_table = pytest.StashKey[list[tuple[str, str, str, Difference]]]()


class Device:
    """A process that trains what it is told to with one interpreter."""

    def __init__(self, runtime: str) -> None:
        python = sys.executable if runtime == "litert" else tflite.python()
        self.runtime = runtime
        self._process = subprocess.Popen(
            [python, STEPS_PROGRAM, runtime],
            env=os.environ | {"PYTHONPATH": str(Path(pollen.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def train(self, folder: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
        assert ready, f"{self.runtime} didn't answer within {ANSWER_S} s"
        answer = self._process.stdout.readline().decode().strip()
        expected = "ai-edge-litert 2." if self.runtime == "litert" else "tflite-runtime 2.14"
        assert answer.startswith(expected), answer or f"{self.runtime} died: {self._process.wait(10)}"
        with np.load(folder / f"{self.runtime}.npz") as arrays:
            return dict(arrays)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture(scope="session")
def devices() -> Iterator[list[Device]]:
    started = [Device("litert"), Device("tflite")]
    yield started
    for device in started:
        device.stop()


@pytest.fixture
def agrees(devices: list[Device], tmp_path: Path, request: pytest.FixtureRequest) -> Agrees:
    """`agrees(name, case)`: both interpreters end 20 steps where Keras ends them, else AssertionError.

    `optimizers`: several to train with, instead of the case's own, from one compilation.
    """

    def run(name: str, case: Case, optimizers: Sequence[Callable[[Any], Any]] = ()) -> None:
        import keras

        model, bundle = cases.compiled(case)
        table = request.config.stash.setdefault(_table, [])
        for make in optimizers or [case.optimizer]:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            optimizer = make(keras.optimizers)
            batches = cases.write(case, cases.with_optimizer(bundle, optimizer), folder)
            prediction = np.asarray(model(batches["x"][0], training=False))
            reference = cases.trained_by_keras(case, model, batches, make)
            for device in devices:
                found = cases.difference(device.train(folder), reference, prediction, optimizer)
                table.append((name, type(optimizer).__name__, device.runtime, found))
                where = f"{name}, {type(optimizer).__name__}, {device.runtime}: {found}"
                assert found.prediction <= 1e-5, where
                assert found.weights <= found.limit, where
                assert found.state <= found.limit, where
                assert found.losses <= found.loss_limit, where
        keras.backend.clear_session()

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(_table, [])
    if not table:
        return
    terminalreporter.section("20 steps on the device against Keras: largest absolute differences")
    terminalreporter.line(f"{'model':<44}{'optimizer':<10}{'runtime':<8}{'weights':>9}{'state':>9}{'loss':>9}")
    for name, optimizer, runtime, found in table:
        terminalreporter.line(
            f"{name[:43]:<44}{optimizer:<10}{runtime:<8}{found.weights:>9.0e}{found.state:>9.0e}{found.losses:>9.0e}"
        )
