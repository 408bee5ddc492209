"""Time of one merge of a float32 update, beside numpy's `x += a*d` on the same arrays in the same run.

    python benchmarks/merge_speed.py
    python benchmarks/merge_speed.py --parameters 1000000 --repeats 200

Measured in turns, one call each, medians: numpy's own update; FedAsync adding a delta; FedAsync mixing models (reads
the base as well); and the whole way of an update through the server without the disk: CBOR payload to merged model.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks.end_to_end import bundle_of
from pollen import messages
from pollen.encoding import decode_into, named
from pollen.messages import Update
from server.async_strategy import AsynchronousStrategy
from server.rules.rule import Vector

GOAL_RATIO = 1.5


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def contenders(parameters: int) -> dict[str, Callable[[], object]]:
    """What is compared, each a call on vectors of `parameters` float32 numbers; the first is the yardstick."""
    generator = np.random.default_rng(0)
    x, d, base = (generator.normal(0, 1e-3, parameters).astype(np.float32) for _ in range(3))
    factor = np.float32(0.3)
    delta_rule = AsynchronousStrategy("fedasync", direction="delta")
    model_rule = AsynchronousStrategy("fedasync", direction="model")
    bundle = bundle_of(parameters * 4 // 1000)
    tensors = bundle.manifest.weights
    size = bundle.manifest.parameters
    payload = messages.encode(Update(b"t" * 16, 1, 0, 32, 4, named(d[:size], tensors)))
    scratch: Vector = np.empty(size, np.float32)

    def numpy_in_place() -> None:
        nonlocal x
        x += factor * d

    def whole_way() -> None:
        update = messages.decode_update(payload, len(payload))
        decode_into(scratch, update.delta, tensors)
        delta_rule.merge(x[:size], scratch, None, 3, update.samples)

    return {
        "numpy x += a*d": numpy_in_place,
        "fedasync, delta": lambda: delta_rule.merge(x, d, None, 3, 32),
        "fedasync, model": lambda: model_rule.merge(x, d, base, 3, 32),
        "payload to model": whole_way,
    }


def main() -> None:
    """Run and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    calls = contenders(arguments.parameters)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    yardstick = next(iter(medians.values()))
    print(
        f"{arguments.parameters} float32 parameters, medians of {arguments.repeats} turns (goal: ratio <= {GOAL_RATIO})"
    )
    for name, median in medians.items():
        print(f"  {name:<18}{median * 1e6:10.0f} us   ratio {median / yardstick:5.2f}")


if __name__ == "__main__":
    main()
