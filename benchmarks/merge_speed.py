"""Merges a second of every rule, beside the memory's bandwidth, numpy in place, and flower-async's merge.

    python -m benchmarks.merge_speed
    python -m benchmarks.merge_speed --parameters 1000000 --seconds 30 --rules delta fedbuff

All contenders take turns of ten calls in one run; a figure is the mean of the ten calls' medians over the turns. A
rule's ten are the updates of ten devices through AsynchronousStrategy, so that a buffer's flush is shared by its
updates; what a rule keeps stays in memory here.

The limit is 12 bytes a parameter (read both vectors, write one) at the memory's bandwidth, measured in the same run:
the fastest of three plain numpy ways to add vectors that no cache holds, 128 MiB each. Vectors of a size that fits into
a cache can be faster than that: "numpy x += d" shows by how much. flower-async's merge is rebuilt from its description:
Flower's parameters to arrays, (1 - a) x + a u array by array, and back to parameters. "payload to model" is an update's
whole way through the server without the disk: CBOR to merged model, guard left out.

Goals: 60 % of the limit at 1 M and 4 M parameters, ten times flower-async at every size.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays

from benchmarks.weights_bundle import bundle_of
from pollen import messages
from pollen.encoding import decode_into, named
from pollen.messages import Update
from server.async_strategy import AsynchronousStrategy
from server.rules import rules
from server.rules.arithmetic import BLOCK
from server.rules.rule import Vector

SIZES: Final = (5_000, 100_000, 1_000_000, 4_000_000)
CLIENTS: Final = 10
LEAST_TURNS: Final = 5
GOAL_OF_LIMIT: Final = 0.6
GOAL_OF_FLOWER_ASYNC: Final = 10.0
UNCACHED: Final = 2**25
BANDWIDTH: Final = ("x += d", "np.add in blocks", "np.add to another")


class Updates:
    """Ten devices of one speed that answer one after another, as a rule sees it; one call is one update."""

    def __init__(self, rule: str, x: Vector, d: Vector, base: Vector) -> None:
        self._strategy = AsynchronousStrategy(rule)
        self._x, self._d, self._base = x.copy(), d, base
        self._now, self._tasks = 0.0, 0
        self._outstanding: dict[str, float] = {}

    def __call__(self) -> None:
        """Merge the next update."""
        if not self._outstanding:
            self._outstanding = {f"device-{number}": self._now for number in range(CLIENTS)}
            self._now += 1.0
        client = next(iter(self._outstanding))
        config = self._strategy.task_config(client, {})
        self._tasks += 1
        self._strategy.merge(
            self._x,
            self._d,
            self._base,
            0,
            32,
            client=client,
            clients=CLIENTS,
            task=self._tasks.to_bytes(16),
            against=bytes.fromhex(str(config["against"])) if config.get("upload") == "residual" else None,
            now_s=self._now,
            turnaround_s=1.0,
            outstanding=self._outstanding,
        )
        del self._outstanding[client]
        self._strategy.drain()


def bandwidth() -> dict[str, Callable[[], object]]:
    """Plain numpy's ways to add vectors of `UNCACHED` numbers."""
    x, d, y = (np.full(UNCACHED, value, np.float32) for value in (1.0, 1e-6, 0.0))

    def in_blocks() -> None:
        for start in range(0, x.size, BLOCK):
            part = x[start : start + BLOCK]
            np.add(part, d[start : start + BLOCK], out=part)

    def whole() -> None:
        nonlocal x
        x += d

    return dict(zip(BANDWIDTH, (whole, in_blocks, lambda: np.add(x, d, out=y)), strict=True))


def flower_async(parameters: int, x: Vector, d: Vector) -> Callable[[], object]:
    """A merge as flower-async does it, of six arrays."""
    tensors = bundle_of(parameters * 4 // 1000).manifest.shared
    size = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    server = ndarrays_to_parameters(list(named(x[:size], tensors).values()))
    client = ndarrays_to_parameters(list(named(x[:size] + d[:size], tensors).values()))

    def merge() -> None:
        nonlocal server
        arrays, update = parameters_to_ndarrays(server), parameters_to_ndarrays(client)
        server = ndarrays_to_parameters([(1 - 0.3) * a + 0.3 * b for a, b in zip(arrays, update, strict=True)])

    return merge


def whole_way(parameters: int, d: Vector) -> Callable[[], object]:
    """From an update's payload to the merged model."""
    tensors = bundle_of(parameters * 4 // 1000).manifest.shared
    size = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    payload = messages.encode(Update(b"t" * 16, 1, 0, 32, 4, named(d[:size], tensors)))
    model, scratch = np.zeros(size, np.float32), np.empty(size, np.float32)
    strategy = AsynchronousStrategy("delta")

    def merge() -> None:
        update = messages.decode_update(payload, len(payload))
        decode_into(scratch, update.delta, tensors)
        strategy.merge(model, scratch, None, 3, update.samples)

    return merge


def measure(parameters: int, names: list[str], seconds: float) -> dict[str, float]:
    """Median seconds of an update for each contender; those of `BANDWIDTH` scaled to `parameters`."""
    generator = np.random.default_rng(0)
    x, d, base = (generator.normal(0, 1e-3, parameters).astype(np.float32) for _ in range(3))
    factor = np.float32(0.3)

    def numpy_add() -> None:
        nonlocal x
        x += d

    def numpy_in_place() -> None:
        nonlocal x
        x += factor * d

    plain = bandwidth()
    calls: dict[str, Callable[[], object]] = {
        "numpy x += d": numpy_add,
        "numpy x += a*d": numpy_in_place,
        "flower-async": flower_async(parameters, x, d),
    }
    calls |= {"payload to model": whole_way(parameters, d)}
    calls |= {name: Updates(name, x, d, base) for name in names}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    uncached: dict[str, list[float]] = {name: [] for name in plain}
    for call in calls.values():
        _turn(call)  # what a rule keeps is made in its first turn
    started, turns = time.perf_counter(), 0
    while turns < LEAST_TURNS or time.perf_counter() - started < seconds:
        for name, call in calls.items():
            times[name].append(_turn(call))
        for name, call in plain.items():
            uncached[name].append(_turn(call, 1)[0] * parameters / UNCACHED)
        turns += 1
        print(f"\r{parameters:,} parameters: turn {turns}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    medians = {name: float(np.median(values)) for name, values in uncached.items()}
    return medians | {name: float(np.median(values, axis=0).mean()) for name, values in times.items()}


def _turn(call: Callable[[], object], calls: int = CLIENTS) -> list[float]:
    """Seconds of each of some calls."""
    clock = [time.perf_counter()]
    for _ in range(calls):
        call()
        clock.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(clock)]


def show(parameters: int, medians: dict[str, float]) -> None:
    """Print one size's table; a mark stands where a rule misses a goal."""
    fastest = min(BANDWIDTH, key=medians.__getitem__)
    limit, other = medians[fastest], medians["flower-async"]
    print(f"\n{parameters:,} parameters: {12 * parameters / limit / 1e9:.1f} GB/s ({fastest})")
    print(f"  {'':<18}{'merges/s':>10}{'of limit':>10}{'flower-async':>15}")
    for name, median in medians.items():
        if name in BANDWIDTH and name != fastest:
            continue
        missed = name in rules and (
            (parameters >= 1_000_000 and limit / median < GOAL_OF_LIMIT) or other / median < GOAL_OF_FLOWER_ASYNC
        )
        label = "limit" if name == fastest else name
        mark = "  misses" if missed else ""
        print(f"  {label:<18}{1 / median:10,.0f}{limit / median:10.0%}{other / median:14.1f}x{mark}")


def main() -> None:
    """Run and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each size; at least five turns are taken")
    parser.add_argument("--rules", nargs="*", default=sorted(rules), choices=sorted(rules), metavar="RULE")
    arguments = parser.parse_args()
    for parameters in arguments.parameters:
        show(parameters, measure(parameters, arguments.rules, arguments.seconds))


if __name__ == "__main__":
    main()
