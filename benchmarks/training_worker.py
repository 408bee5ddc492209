"""One contender of `benchmarks.training_step` in a process of its own: CONTENDER MODEL SIZE BUNDLES.

Answers with the seconds its imports took. Then, for each number of seconds on standard input, trains for about so much
CPU time and answers with the CPU seconds of a step.
"""

import importlib
import sys
import time
from pathlib import Path

LEAST_STEPS = 5


def main() -> None:
    """Serve until standard input ends."""
    contender, model, size, bundles = sys.argv[1:]
    started = time.perf_counter()
    library = importlib.import_module(f"benchmarks.training_{contender}")
    imported = time.perf_counter() - started
    step = library.stepper(model, int(size), Path(bundles))
    for _ in range(LEAST_STEPS):
        step()
    print(imported, flush=True)
    for line in sys.stdin:
        steps, begun, used = 0, time.process_time(), 0.0
        while steps < LEAST_STEPS or used < float(line):
            step()
            steps += 1
            used = time.process_time() - begun
        print(used / steps, flush=True)


if __name__ == "__main__":
    main()
