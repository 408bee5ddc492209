"""`pollen compile`: a .keras file to a bundle."""

import argparse
import sys
import time
from pathlib import Path

from pollen.compiler.quiet import native_stderr_to_log
from pollen.errors import CompileError, PollenError
from pollen.manifest import LOSSES

EXAMPLES = """examples:
  pollen compile model.keras --loss mse -o model.bundle
  pollen compile gestures.keras --loss sparse_categorical_crossentropy \\
      --optimizer momentum --learning-rate 0.05 --batch 32 --name gestures -o gestures.bundle
"""


def main(argv: list[str]) -> int:
    """Run `pollen compile`; returns 0, or 1 with one line on stderr."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        summary = _compile(options)
    except PollenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {summary}, {time.monotonic() - started:.1f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen compile",
        description="Compile a Keras model to a bundle that trains on a device, and check it against Keras.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a .keras file, written by model.save()")
    parser.add_argument("--loss", required=True, choices=LOSSES)
    parser.add_argument("--optimizer", default="adam", choices=("sgd", "momentum", "nesterov", "adam"))
    parser.add_argument("--learning-rate", type=float, help="by default 0.001 for adam, 0.01 for the others")
    parser.add_argument("--batch", type=int, default=16, help="examples in a training step (default: 16)")
    parser.add_argument("--name", help="of the model on the wire: a-z 0-9 _ - (default: the file's name)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle to write")
    return parser


def _compile(options: argparse.Namespace) -> str:
    with native_stderr_to_log():
        try:
            from pollen.compiler import compilation, models
        except ImportError as error:
            raise CompileError(f"{error}; install it with: pip install 'pollen-fl[compiler]'") from error

        model = models.load(options.model)
        bundle = compilation.compile(
            model,
            loss=options.loss,
            optimizer=options.optimizer,
            learning_rate=options.learning_rate,
            batch=options.batch,
            name=options.name or compilation.wire_name(options.model.stem),
        )
    bundle.write(options.output)
    manifest = bundle.manifest
    size = options.output.stat().st_size
    return f"model {manifest.model}, {manifest.parameters} parameters, {len(model.layers)} layers, {size} bytes"
