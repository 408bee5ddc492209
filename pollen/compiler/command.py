"""`pollen compile`: a .keras file to a bundle."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Final

from pollen.compiler.quiet import steps_to_terminal
from pollen.errors import CompileError, PollenError
from pollen.objective import CLIPPING, LOSSES

OPTIMIZERS: Final = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad")
EXAMPLES = """examples:
  pollen compile model.keras --loss mse -o model.bundle
  pollen compile gestures.keras --loss sparse_categorical_crossentropy \\
      --optimizer momentum --learning-rate 0.05 --batch 32 --name gestures -o gestures.bundle
  pollen compile vibration.keras --loss huber --huber-delta 0.5 --optimizer rmsprop --global-clipnorm 1 \\
      -o vibration.bundle
  pollen compile gestures.keras --loss sparse_categorical_crossentropy --freeze conv1d --freeze conv1d_1 \\
      --personal classes -o gestures.bundle
  pollen compile gestures.keras --loss sparse_categorical_crossentropy --last-layer-only -o gestures.bundle

Learning-rate schedules, and an optimizer's other constants: give the Keras object to pollen.compiler.compile.
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
    parser.add_argument("--huber-delta", type=float, help="where the huber loss turns linear (default: 1)")
    parser.add_argument("--optimizer", default="adam", choices=OPTIMIZERS)
    parser.add_argument(
        "--learning-rate", type=float, help="by default 0.01 for sgd, momentum and nesterov, 0.001 for the others"
    )
    clipping = parser.add_mutually_exclusive_group()
    clipping.add_argument("--clipnorm", type=float, metavar="NORM", help="clip each tensor's gradient to this norm")
    clipping.add_argument("--global-clipnorm", type=float, metavar="NORM", help="clip the whole gradient to this norm")
    clipping.add_argument("--clipvalue", type=float, metavar="VALUE", help="clip each value of the gradient")
    parser.add_argument("--batch", type=int, default=16, help="examples in a training step (default: 16)")
    parser.add_argument("--name", help="of the model on the wire: a-z 0-9 _ - (default: the file's name)")
    parser.add_argument(
        "--personal",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer each device trains for itself and never sends; may be repeated",
    )
    parser.add_argument(
        "--freeze", action="append", default=[], metavar="LAYER", help="a layer that isn't trained; may be repeated"
    )
    parser.add_argument("--last-layer-only", action="store_true", help="freeze all but the last layer with weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle to write")
    return parser


def _compile(options: argparse.Namespace) -> str:
    with steps_to_terminal():
        try:
            from pollen.compiler import compilation, models
        except ImportError as error:
            raise CompileError(f"{error}; install it with: pip install 'pollen-fl[compiler]'") from error

        model = models.load(options.model)
        bundle = compilation.compile(
            model,
            loss=_loss(options),
            optimizer=_optimizer(options),
            learning_rate=options.learning_rate,
            batch=options.batch,
            name=options.name or compilation.wire_name(options.model.stem),
            personal=options.personal,
            frozen=options.freeze,
            last_layer_only=options.last_layer_only,
        )
    bundle.write(options.output)
    manifest = bundle.manifest
    size = options.output.stat().st_size
    return f"model {manifest.model}, {manifest.parameters} parameters, {len(model.layers)} layers, {size} bytes"


def _loss(options: argparse.Namespace) -> Any:
    """What `compile` takes as loss."""
    if options.huber_delta is None:
        return options.loss
    if options.loss != "huber":
        raise CompileError(f"--huber-delta is of the huber loss, not of {options.loss}; leave it out")
    import keras

    return keras.losses.Huber(delta=options.huber_delta)


def _optimizer(options: argparse.Namespace) -> Any:
    """What `compile` takes as optimizer."""
    for kind in CLIPPING:
        limit = getattr(options, kind)
        if limit is not None:
            from pollen.compiler import optimizers

            return optimizers.clipped(options.optimizer, kind, limit)
    return options.optimizer
