"""Sixteen devices learn from one person's movements each, in the order of time, beside learning alone and FedAvg.

    python -m benchmarks.motionsense
    python -m benchmarks.motionsense --seeds 1 --people 4 --methods alone adaptive
    python -m benchmarks.motionsense --quick

MotionSense, phone accelerometer and gyroscope, 50 Hz, six activities; a person's recordings come one activity after the
other, and each once, so that a device that remembers only the newest forgets. A 1-D CNN of 6,390 parameters predicts
each window before it learns it. Devices run pollen-edge's own learner, replay buffer, worker, trainer and outbox,
sixteen in one process on clocks of their own; the server's part are its merge rules. See motionsense_fleet.py.

All methods make equally many updates from the same examples with the same settings; "alone" keeps them to itself.
final: the server's last model on each person's own test recordings, mean and worst person; own: what each device
predicts with after its last training instead.
"""

import argparse
import dataclasses
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.motionsense_device import How
from benchmarks.motionsense_fleet import Fleet, Outcome, Person, people
from benchmarks.roles import PROJECT
from benchmarks.simulated_fleet import MOTIONSENSE
from pollen.bundle import Bundle

LOCAL_ONLY: Final = 0.853  # the data's README: each person alone, many epochs, windows in any order
METHODS: Final[dict[str, Callable[[Fleet], Outcome]]] = {
    "alone": Fleet.alone,
    "FedAvg": Fleet.synchronous,
    "adaptive": lambda fleet: fleet.asynchronous("adaptive"),
    "fedasync": lambda fleet: fleet.asynchronous("fedasync"),
}
MEMORIES: Final[dict[str, dict[str, Any]]] = {
    "newest 128": {"replay": 128, "reservoir": 0.0},
    "64 + reservoir of 64": {"replay": 128, "reservoir": 0.5},
    "the same, balanced": {"replay": 128, "reservoir": 0.5, "balanced": True},
    "the same, no drift detection": {"replay": 128, "reservoir": 0.5, "balanced": True, "drift": False},
    "2,000, no drift detection": {"drift": False},
}

BUILD: Final = """
import sys, keras
from keras import layers
from pollen.compiler import compile
for path, seed in zip(sys.argv[2:], range(1000)):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((128, 6)),
        *(layers.Conv1D(n, k, strides=2, padding="same", activation="relu") for n, k in ((16, 5), (32, 5), (32, 3))),
        layers.GlobalAveragePooling1D(), layers.Dense(6, activation="softmax")])
    compile(model, loss="sparse_categorical_crossentropy", optimizer="adam", learning_rate=float(sys.argv[1]),
        batch=16, name="har").write(path)
"""


def build(folder: Path, seeds: int, rate: float) -> list[Bundle]:
    """The model, with other first weights for each seed."""
    files = [folder / f"{seed}.bundle" for seed in range(seeds)]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(rate), *map(str, files)],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: the model was not compiled: {done.stderr[-500:]}")
    return [Bundle.read(file) for file in files]


def measure(name: str, method: str, bundles: list[Bundle], everyone: list[Person], how: How) -> list[Outcome]:
    """One outcome for each seed."""
    found, shown = [], 0.0
    for seed, bundle in enumerate(bundles):

        def progress(text: str, seed: int = seed) -> None:
            nonlocal shown
            if time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                print(f"\r{name}, seed {seed}: {text}   ", end="", file=sys.stderr, flush=True)

        with closing(Fleet(bundle, everyone, how, seed, progress)) as fleet:
            found.append(METHODS[method](fleet))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return found


def row(name: str, outcomes: list[Outcome], beside: float) -> str:
    """A line of the table."""
    mean = float(np.mean([one.final for one in outcomes]))
    worst = float(np.mean([min(one.final) for one in outcomes]))
    own = float(np.mean([one.own for one in outcomes]))
    spread = [float(np.mean(one.final)) for one in outcomes]
    tenths = np.mean([one.prequential for one in outcomes], axis=0)
    return (
        f"  {name:<30}{mean:6.3f} {f'({min(spread):.3f} to {max(spread):.3f})':<18}{worst:6.2f}{own:7.3f}"
        f"{mean / beside:7.2f}   {np.mean(tenths):.3f}: " + " ".join(f"{value:.2f}" for value in tenths)
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--memories", action="store_true", help="compare settings of the replay buffer too")
    parser.add_argument("--rate", type=float, default=0.003, help="Adam's learning rate")
    parser.add_argument("--hop", type=int, default=How().hop, choices=(32, 64, 128), help="samples between two windows")
    parser.add_argument("--updates", type=int, default=How().updates, help="of each device in its whole stream")
    parser.add_argument("--epochs", type=int, default=How().epochs, help="of a training, at most")
    parser.add_argument("--steps", type=int, default=How().steps, help="of a training, at most")
    parser.add_argument("--quick", action="store_true", help="4 people, 1 seed, few steps: only to see that it runs")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # drifts are counted in the table
    if not MOTIONSENSE.exists():
        raise SystemExit(f"error: {MOTIONSENSE} is absent; this benchmark needs it")
    if arguments.quick:
        arguments.seeds, arguments.people, arguments.hop, arguments.steps = 1, 4, 128, 4
    everyone = people(arguments.hop, arguments.people)
    how = How(arguments.hop, arguments.updates, arguments.epochs, arguments.steps)
    with tempfile.TemporaryDirectory() as name:
        print("compiling the model", file=sys.stderr)
        bundles = build(Path(name), arguments.seeds, arguments.rate)
        windows = sum(one.windows for one in everyone)
        print(
            f"MotionSense, {len(everyone)} devices, {windows} windows, {arguments.seeds} seeds; {how.updates} "
            f"updates each, at most {how.steps} steps of Adam at {arguments.rate:g}, {how.encoding}"
        )
        print(
            f"  {'':<30}{'final accuracy on own tests':<25}{'worst':>6}{'own':>7}{'ratio':>7}"
            "   prequential accuracy: by tenth of the streams"
        )
        results: dict[str, list[Outcome]] = {}
        for method in arguments.methods:
            results[method] = measure(method, method, bundles, everyone, how)
            beside = float(np.mean([one.final for one in results[arguments.methods[0]]]))
            print(row(method, results[method], beside), flush=True)
        if arguments.memories:
            print("  adaptive, with another memory:")
            for memory, changes in MEMORIES.items():
                outcomes = measure(memory, "adaptive", bundles, everyone, dataclasses.replace(how, **changes))
                print(row(memory, outcomes, beside), flush=True)
        print(f"  ratio: to {arguments.methods[0]}; offline, many epochs, each person alone: {LOCAL_ONLY}")
        for method, outcomes in results.items():
            updates = sum(one.updates for one in outcomes) / len(outcomes)
            size = sum(one.sent_bytes for one in outcomes) / sum(one.updates for one in outcomes)
            drifts = sum(one.drifts for one in outcomes) / len(outcomes)
            print(f"  {method:<10}{updates:6.0f} updates of {size:6.0f} bytes, {drifts:.1f} drifts noticed")


if __name__ == "__main__":
    main()
