"""A training step on the device beside Keras, PyTorch and numpy: CPU time, peak memory, import time, install size.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --models mlp gru --sizes 16 --rounds 5 --without torch

Every library has a process of its own and one thread; the processes of a model and batch size stay and take turns,
round by round, so that ratios hold although the machine's speed doesn't. A step's time is CPU time of the whole
process: forward, backward and SGD. A figure is the median of the rounds; the ratio to Keras has the range of the
rounds' own ratios behind it. Peak memory is the process's largest resident set (VmHWM). Import is wall time, once a
process, and install the size of the packages needed, both for what a device needs to train and nothing more.

PyTorch gets an environment in .cache/benchmarks (1 GB), its CPU wheel from PyTorch's index. tflite-runtime is measured
with the Python of `make test`, .venv-tflite, or the one named by --tflite.

Goals: at most 1/8 of Keras's peak memory everywhere, and never slower than Keras per step.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import numpy as np

from benchmarks.roles import PROJECT, logs, process
from benchmarks.training_install import installed_mb, torch_python
from benchmarks.training_models import SHAPES, TITLES

MEMORY_GOAL: Final = 1 / 8
DEVICES: Final = ("ai-edge-litert", "tflite-runtime")
KERAS: Final = "Keras on TensorFlow"
ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


@dataclass(frozen=True)
class Contender:
    """A library: its module `benchmarks.training_<module>`, the Python it is in, its distributions."""

    name: str
    module: str
    python: str
    distributions: tuple[str, ...]


@dataclass
class Found:
    """What was measured of one contender with one model: CPU seconds a step, round by round, and the rest."""

    steps: list[float] = field(default_factory=list)
    import_s: float = 0.0
    peak_mib: float = 0.0


def contenders(tflite: str, without: Sequence[str]) -> list[Contender]:
    """Everyone who takes part; Keras always does."""
    device = ("numpy", "cbor2")
    every = [Contender("ai-edge-litert", "device", sys.executable, ("ai-edge-litert", *device))]
    if "tflite" not in without:
        every.append(Contender("tflite-runtime", "device", tflite, ("tflite-runtime", *device)))
    every.append(Contender(KERAS, "keras", sys.executable, ("keras", "tensorflow")))
    if "torch" not in without:
        python = torch_python(PROJECT / ".cache" / "benchmarks" / "torch")
        every.append(Contender("PyTorch", "torch", python, ("torch", "numpy")))
    if "numpy" not in without:
        every.append(Contender("numpy by hand", "numpy", sys.executable, ("numpy",)))
    return every


def measure(
    model: str, size: int, everyone: Sequence[Contender], bundles: Path, *, rounds: int, seconds: float
) -> dict[str, Found]:
    """Let all contenders train one model in turns."""
    taking_part = [one for one in everyone if model == "mlp" or one.module != "numpy"]
    found = {one.name: Found() for one in taking_part}
    folder = bundles / f"logs-{model}-{size}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        running = {}
        for one in taking_part:
            worker = ("-m", "benchmarks.training_worker", one.module, model, str(size), str(bundles))
            child = stack.enter_context(process(folder, one.name, *worker, python=one.python))
            running[one.name] = child
            # One after the other: an import beside another would be slower.
            found[one.name].import_s = _answer(child.stdout, folder)
        for number in range(rounds):
            print(f"\r{model}, batch {size}: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
            for name, child in running.items():
                print(seconds, file=child.stdin, flush=True)
                found[name].steps.append(_answer(child.stdout, folder))
        for name, child in running.items():
            status = Path(f"/proc/{child.pid}/status").read_text()
            found[name].peak_mib = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(file=sys.stderr)
    return found


def _answer(stdout: IO[str] | None, folder: Path) -> float:
    """A worker's next number; SystemExit with the logs when it died."""
    line = stdout.readline() if stdout is not None else ""
    if not line:
        raise SystemExit(f"error: a worker died\n{logs(folder)}")
    return float(line)


def show(model: str, size: int, found: dict[str, Found]) -> list[str]:
    """Print a table; returns the goals missed."""
    keras = found[KERAS]
    missed: list[str] = []
    print(f"\n{TITLES[model]}, batch {size}")
    print(f"  {'':<20}{'CPU µs a step':>14}{'to Keras':>10}{'range':>14}{'peak MiB':>10}{'to Keras':>10}")
    for name, one in found.items():
        ratios = np.divide(one.steps, keras.steps)
        step, memory = float(np.median(ratios)), one.peak_mib / keras.peak_mib
        spread = f"{ratios.min():.3f}-{ratios.max():.3f}"
        print(
            f"  {name:<20}{np.median(one.steps) * 1e6:>14,.0f}{step:>10.3f}{spread:>14}"
            f"{one.peak_mib:>10.0f}{memory:>10.3f}"
        )
        if name in DEVICES:
            where = f"{name}, {model}, batch {size}"
            missed += [f"{where}: {step:.2f} of Keras's CPU time"] if step > 1 else []
            missed += [f"{where}: 1/{1 / memory:.1f} of Keras's memory"] if memory > MEMORY_GOAL else []
    return missed


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 32], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU time of each turn")
    parser.add_argument("--without", nargs="+", default=[], choices=["tflite", "torch", "numpy"])
    parser.add_argument("--tflite", default=str(PROJECT / ".venv-tflite" / "bin" / "python"))
    arguments = parser.parse_args()
    if "tflite" not in arguments.without and not Path(arguments.tflite).exists():
        parser.error(f"{arguments.tflite} isn't there: `make test` makes it; or --tflite PYTHON, or --without tflite")
    os.environ.update(dict.fromkeys(ONE_THREAD, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"})
    everyone = contenders(arguments.tflite, arguments.without)
    missed: list[str] = []
    imports: dict[str, list[float]] = {one.name: [] for one in everyone}
    with tempfile.TemporaryDirectory() as name:
        bundles = Path(name)
        print("compiling the models", file=sys.stderr)
        sizes = [str(size) for size in arguments.sizes]
        compiled = [sys.executable, "-m", "benchmarks.training_keras", name, *arguments.models, *sizes]
        done = subprocess.run(compiled, cwd=PROJECT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {done.stderr.strip().splitlines()[-1]}")
        for model in arguments.models:
            for size in arguments.sizes:
                found = measure(model, size, everyone, bundles, rounds=arguments.rounds, seconds=arguments.seconds)
                missed += show(model, size, found)
                for contender, one in found.items():
                    imports[contender].append(one.import_s)
    print(f"\n  {'':<20}{'import s':>10}{'to Keras':>10}{'install MB':>12}{'to Keras':>10}")
    megabytes = {one.name: installed_mb(one.python, *one.distributions) for one in everyone}
    for contender, seconds in imports.items():
        if not seconds:
            continue  # had no model to train
        took, whole = np.median(seconds), np.median(imports[KERAS])
        size_mb = megabytes[contender]
        print(f"  {contender:<20}{took:>10.2f}{took / whole:>10.3f}{size_mb:>12.1f}{size_mb / megabytes[KERAS]:>10.3f}")
    print("\ngoals, 1/8 of Keras's memory and never slower than Keras: " + ("missed" if missed else "met"))
    for line in missed:
        print(f"  missed: {line}")


if __name__ == "__main__":
    main()
