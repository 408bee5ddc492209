"""`pollen inference`: a bundle and weights to a graph that only predicts, small and quick."""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pollen import atomic
from pollen.bundle import Bundle
from pollen.compiler.export import read_weights
from pollen.compiler.quiet import steps_to_terminal
from pollen.errors import CompileError, PollenError
from pollen.examples import Examples, read
from pollen.messages import GRAPH_KINDS

if TYPE_CHECKING:
    from pollen.compiler.inference import Conversion

EXAMPLES = """examples:
  pollen inference gestures.bundle --kind int8 --calibration recent.npz -o gestures.tflite
  pollen inference gestures.bundle --weights final.npz --kind int8 --kind float32 \\
      --calibration recent.npz --holdout heldout.npz -o gestures.tflite

recent.npz holds x [n, …], inputs as the model takes them (some hundred); heldout.npz also their labels y.
"""


def main(argv: list[str]) -> int:
    """Run `pollen inference`; returns 0, or 1 with one line on stderr."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    if options.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        made, refusals = _make(options)
        _write(options.output, made.graph)
    except PollenError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    if options.json:
        found: dict[str, Any] = {"kind": made.kind, "float_bytes": made.float_bytes, "metrics": made.metrics}
        print(json.dumps(found | {"refusals": refusals}))  # noqa: T201 - a command's answer
    else:
        for refusal in refusals:
            print(f"{refusal}", file=sys.stderr)  # noqa: T201 - a command's answer
        print(f"{options.output}: {describe(made)}, {time.monotonic() - started:.1f} s")  # noqa: T201 - a command's answer
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen inference",
        description="Make a graph of a bundle that only predicts, in float32 or quantised, and say what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="made by pollen compile")
    parser.add_argument("--weights", type=Path, help=".npz of trained weights, as final.npz (default: the bundle's)")
    parser.add_argument(
        "--kind",
        choices=GRAPH_KINDS,
        action="append",
        required=True,
        help="float32; dynamic (int8 weights); int8 (integers throughout); of several the first that will do",
    )
    parser.add_argument("--calibration", type=Path, help=".npz with x: inputs that int8's ranges are taken from")
    parser.add_argument("--holdout", type=Path, help=".npz with x and y, to compare loss and error on")
    parser.add_argument("--max-added-error", type=float, metavar="E", help="refuse a kind whose error grows by more")
    parser.add_argument("--json", action="store_true", help="print kind, sizes and errors as JSON")
    parser.add_argument("--until-stdin-ends", action="store_true", help="give up when standard input is closed")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .tflite file to write")
    return parser


def _end_with_stdin() -> None:
    # Not through a buffer: a process that ends may not be waiting for one's lock.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)  # sys.exit would end this thread only


def _make(options: argparse.Namespace) -> tuple["Conversion", list[str]]:
    """The first kind that can be made, and why those before it could not. Raises PollenError."""
    bundle = Bundle.read(options.bundle)
    weights = read_weights(options.weights) if options.weights else None
    calibration, holdout = _examples(options.calibration, bundle), _examples(options.holdout, bundle)
    refusals: list[str] = []
    with steps_to_terminal():
        try:
            from pollen.compiler import inference  # noqa: PLC0415 - imports TensorFlow
        except ImportError as error:
            raise CompileError(f"{error}; install it with: pip install 'pollen-fl[compiler]'") from error
        for kind in options.kind:
            try:
                made = inference.make(
                    bundle,
                    kind,
                    shared=weights,
                    calibration=calibration,
                    holdout=holdout,
                    max_added_error=options.max_added_error,
                )
            except CompileError as error:
                refusals.append(str(error))
            else:
                return made, refusals
    raise CompileError("; ".join(refusals))


def _examples(path: Path | None, bundle: Bundle) -> Examples | None:
    return None if path is None else read(path, bundle.manifest)


def _write(path: Path, graph: bytes) -> None:
    try:
        atomic.write(path, graph, mode=0o644)
    except OSError as error:
        raise CompileError(f"{path}: can't be written ({error.strerror}); check the folder and its space") from error


def describe(made: "Conversion") -> str:
    """Kind, size and what was lost, as one line."""
    metrics = made.metrics
    size = f"{made.kind}, {len(made.graph)} bytes (float32 {made.float_bytes})"
    outputs = f"outputs differ by {metrics['mean_difference']:.2g} in the mean, {metrics['max_difference']:.2g} at most"
    if "loss" not in metrics:
        return f"{size}, {outputs}"
    before, after = (f"error {metrics[f'{p}error']:.4g}, loss {metrics[f'{p}loss']:.4g}" for p in ("float_", ""))
    return f"{size}, {after} (float32 {before}), {outputs}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
