"""One device learning online from NAB's sensor streams, beside persistence, recursive least squares and a 3σ alarm.

    python -m benchmarks.nab
    python -m benchmarks.nab --quick
    python -m benchmarks.nab --seeds 5 --data path/to/public.npz

The device is the real one (windows, prequential scores, drift, replay buffer, training worker, interpreter) with
default settings and `[anomaly] enabled`, without a broker and in accelerated time. The model is examples/forecaster.py,
which sees the last 12 values, as least squares does. One configuration for all streams. Every value is predicted before
it is learned from, in the order of arrival; the errors count after the first 15 %. Time stamps are not used: the next
value is the next in the file, also over gaps.

A seed is that of the model's first weights. The device's own draws, the order of examples and its reservoir, are new in
every run. Figures are medians over seeds. Goals: better than persistence on 12 of 14 streams, and at most 5 % behind
recursive least squares on half of them.
"""

import argparse
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import nab_device
from benchmarks.nab_yardsticks import (
    DATA,
    PUBLISHED,
    Alarms,
    Stream,
    judge,
    load,
    mean_absolute_error,
    naive_alarms,
    persistence,
    recursive_least_squares,
    total,
)
from pollen.bundle import Bundle

QUICK: Final = ("speed_7578", "occupancy_6005")
BEHIND: Final = 1.05


@dataclass(frozen=True, eq=False)
class Result:
    """What a device came to on one stream."""

    error: float
    alarms: Alarms
    drifts: int
    trainings: int


@dataclass(frozen=True, eq=False)
class Row:
    """One stream: the device's result for each seed beside the yardsticks'."""

    name: str
    persistence: float
    least_squares: float
    naive: Alarms
    results: list[Result]

    @property
    def error(self) -> float:
        """The device's median error."""
        return float(np.median([result.error for result in self.results]))

    @property
    def beats_persistence(self) -> bool:
        """Whether it is below persistence's."""
        return self.error < self.persistence

    @property
    def keeps_up(self) -> bool:
        """Whether it is at most 5 % above that of least squares, ours or the published one, whichever is lower."""
        published = PUBLISHED.get(self.name, (np.inf, np.inf))[1]
        return self.error <= BEHIND * min(self.least_squares, published)


def bundle_of(seed: int) -> bytes:
    """The example's model, compiled."""
    # Not in the processes of the devices.
    import keras  # noqa: PLC0415

    from examples import forecaster  # noqa: PLC0415
    from pollen.compiler import compile as compile_model  # noqa: PLC0415

    keras.utils.set_random_seed(seed)
    bundle = compile_model(
        forecaster.forecaster(),
        loss=forecaster.LOSS,
        optimizer=forecaster.OPTIMIZER,
        learning_rate=forecaster.LEARNING_RATE,
        batch=forecaster.BATCH,
    )
    return bundle.to_bytes()


def measure(task: tuple[Stream, bytes]) -> Result:
    """One device on one stream."""
    logging.getLogger("edge_client").setLevel(logging.ERROR)  # drifts are in the table
    stream, payload = task
    watched = nab_device.watch(Bundle.from_bytes(payload, "the benchmark's bundle"), stream.values)
    return Result(
        mean_absolute_error(stream, watched.forecasts),
        judge(stream, watched.alarms),
        len(watched.drifts),
        watched.trainings,
    )


def yardsticks(stream: Stream) -> tuple[float, float, Alarms]:
    """The errors of persistence and least squares, and the naive alarms."""
    values = stream.values
    plain, squares = persistence(values), recursive_least_squares(values)
    return (
        mean_absolute_error(stream, plain),
        mean_absolute_error(stream, squares),
        judge(stream, naive_alarms(values)),
    )


def run(streams: list[Stream], seeds: int) -> list[Row]:
    """Everything, in as many processes as there are processors; progress on stderr."""
    bundles = [bundle_of(seed) for seed in range(seeds)]
    tasks = [(stream, bundle) for stream in streams for bundle in bundles]
    results: list[Result] = []
    # TensorFlow is in this process, and doesn't survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = pool.map(yardsticks, streams)
        for number, result in enumerate(pool.map(measure, tasks), start=1):
            results.append(result)
            print(f"\r{number} of {len(tasks)} runs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return [
            Row(stream.name, *yardstick, results[place * seeds : (place + 1) * seeds])
            for place, (stream, yardstick) in enumerate(zip(streams, found, strict=True))
        ]


def show(rows: list[Row], seeds: int) -> list[str]:
    """Print the tables; returns the goals missed."""
    print(f"mean absolute error one step ahead after 15 %, the stream's unit; device: median of {seeds} seeds from 0")
    print(f"{'':36}{'persistence':>12}{'RLS':>10}{'device':>10}{'/ persist.':>16}{'/ RLS':>8}{'drifts':>8}")
    for row in rows:
        ratios = [result.error / row.persistence for result in row.results]
        spread = f"({min(ratios):.2f}-{max(ratios):.2f})" if seeds > 1 else ""
        drifts = float(np.median([result.drifts for result in row.results]))
        print(
            f"{row.name:36}{row.persistence:12.4g}{row.least_squares:10.4g}{row.error:10.4g}"
            f"{row.error / row.persistence:6.3f}{spread:>12}{row.error / row.least_squares:6.3f}{drifts:8g}"
        )
    better, keeping = sum(row.beats_persistence for row in rows), sum(row.keeps_up for row in rows)
    print(f"better than persistence on {better} of {len(rows)}; at most 5 % behind RLS on {keeping} of {len(rows)}")
    print("\nanomalies: labelled windows found, false alarms per week, windows that random alarms as often would find")
    print(f"{'':36}{'device':>22}{'by chance':>12}{'naive 3σ':>22}{'by chance':>12}")
    for row in rows:
        print(f"{row.name:36}{_told(_middle(row))}{_told(row.naive)}")
    device, naive = total([_middle(row) for row in rows]), total([row.naive for row in rows])
    print(f"{'all':36}{_told(device)}{_told(naive)}")
    goals = {
        "better than persistence on 12 of 14": better >= len(rows) * 12 / 14,
        "at most 5 % behind RLS on half": keeping >= len(rows) / 2,
    }
    return [goal for goal, reached in goals.items() if not reached]


def _middle(row: Row) -> Alarms:
    """The alarms of the seed with the median number of false ones."""
    return sorted((result.alarms for result in row.results), key=lambda alarms: alarms.false)[len(row.results) // 2]


def _told(alarms: Alarms) -> str:
    return f"{f'{alarms.found}/{alarms.windows}':>10}{alarms.false_a_week:7.2f}/week{alarms.by_chance:12.1f}"


def main() -> None:
    """Run and print; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="NAB's streams, public.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"one seed, and only {' and '.join(QUICK)}")
    arguments = parser.parse_args()
    streams, seeds = load(arguments.data), arguments.seeds
    if arguments.quick:
        streams, seeds = [stream for stream in streams if stream.name in QUICK], 1
    missed = show(run(streams, seeds), seeds)
    if missed:
        raise SystemExit("error: missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
