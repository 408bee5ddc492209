"""Bytes of an update, and what they bring, in each encoding: f32, f16, q8 and top-k on benchmarks.motionsense's task.

    python -m benchmarks.upload_cost
    python -m benchmarks.upload_cost --seeds 3 --encodings f32 q8 topk

The same fleet, merge rule and number of updates for each; what a lossy update misses goes along with the next (error
feedback). Bytes are those of the whole MQTT payload. A point is one percent of accuracy on each person's own test,
above the 24 % of the most frequent class.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.motionsense import build, measure
from benchmarks.motionsense_device import How
from benchmarks.motionsense_fleet import people
from benchmarks.simulated_fleet import MOTIONSENSE
from pollen.encoding import ENCODINGS

MAJORITY: Final = 0.24  # the data's README


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--rule", choices=("adaptive", "fedasync"), default="adaptive")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--rate", type=float, default=0.003, help="Adam's learning rate")
    parser.add_argument("--steps", type=int, default=How().steps, help="of a training")
    parser.add_argument("--quick", action="store_true", help="4 people, few steps: only to see that it runs")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if not MOTIONSENSE.exists():
        raise SystemExit(f"error: {MOTIONSENSE} is absent; this benchmark needs it")
    if arguments.quick:
        arguments.people, arguments.steps = 4, 4
    everyone = people(How().hop, arguments.people)
    with tempfile.TemporaryDirectory() as name:
        print("compiling the model", file=sys.stderr)
        bundles = build(Path(name), arguments.seeds, arguments.rate)
    parameters = bundles[0].manifest.shared_size
    print(f"MotionSense, {len(everyone)} devices, {parameters} parameters, rule {arguments.rule}, {len(bundles)} seeds")
    print(f"  {'':<6}{'bytes an update':>16}{'ratio':>7}{'accuracy':>10}{'bytes a point and device':>26}{'ratio':>7}")
    first: tuple[float, float] | None = None
    for encoding in arguments.encodings:
        how = dataclasses.replace(How(), steps=arguments.steps, encoding=encoding)
        outcomes = measure(encoding, arguments.rule, bundles, everyone, how)
        accuracy = float(np.mean([one.final for one in outcomes]))
        size = sum(one.sent_bytes for one in outcomes) / sum(one.updates for one in outcomes)
        points = 100 * max(accuracy - MAJORITY, 0.01)
        each = sum(one.sent_bytes for one in outcomes) / len(outcomes) / len(everyone) / points
        first = first or (size, each)
        print(
            f"  {encoding:<6}{size:16.0f}{size / first[0]:7.2f}{accuracy:10.3f}{each:26.0f}{each / first[1]:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
