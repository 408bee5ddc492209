"""`pollen export`: trained weights back into a .keras file."""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pollen import atomic
from pollen.bundle import Bundle, Floats
from pollen.compiler.quiet import native_stderr_to_log
from pollen.errors import CompileError, PollenError

EXAMPLES = """examples:
  pollen export model.keras --weights weights.npz -o trained.keras
"""


def export_keras(keras_path: Path | str, weights: Mapping[str, Floats], out_path: Path | str) -> None:
    """Write a copy of a .keras file with other trainable weights, atomically.

    `weights` holds one array for each name in the bundle's manifest, with its shape. Raises CompileError when
    the file can't be read or names, shapes or values don't fit.
    """
    out = _keras_name(out_path)
    # Not before it is needed: imports TensorFlow, which takes seconds.
    from pollen.compiler import models  # noqa: PLC0415

    _export(models.load(keras_path), keras_path, weights, out)


def export_bundle(bundle: Bundle, source: Path, weights: Mapping[str, Floats], out_path: Path | str) -> None:
    """Like `export_keras`, with the architecture that a bundle's manifest holds; `source` names the bundle in errors.

    Frozen and personal layers, which `weights` doesn't hold, are as in the bundle.
    """
    out = _keras_name(out_path)
    from pollen.compiler import models  # noqa: PLC0415

    model = models.from_architecture(bundle.manifest.architecture, source)
    _export(model, source, bundle.values() | dict(weights), out)


def _keras_name(path: Path | str) -> Path:
    if Path(path).suffix != ".keras":
        raise CompileError(f"{path}: a Keras model's file name must end in .keras")
    return Path(path)


def _export(model: Any, source: Path | str, weights: Mapping[str, Floats], out: Path) -> None:
    from pollen.compiler.weights import variables as variables_of  # noqa: PLC0415

    variables = variables_of(model)
    given = {name.partition("/")[0] for name in weights}
    # Layers that were frozen or personal are missing as a whole, and stay as they are in the file.
    needed = {tensor.name for tensor, _ in variables.trained + variables.state if tensor.layer in given}
    missing, extra = needed - set(weights), set(weights) - {tensor.name for tensor, _ in variables.all()}
    if missing or extra:
        raise CompileError(
            f"{source}: the weights don't fit this model; missing {sorted(missing)}, unknown {sorted(extra)}"
        )
    for tensor, variable in variables.all():
        if tensor.name not in weights:
            continue
        values = np.asarray(weights[tensor.name])
        if values.shape != tensor.shape or values.dtype != np.float32 or not np.isfinite(values).all():
            raise CompileError(
                f"weights {tensor.name!r} must be finite float32 {list(tensor.shape)}, "
                f"not {values.dtype} {list(values.shape)}"
            )
        variable.assign(values)
    _save(model, out)


def _save(model: object, out: Path) -> None:
    """Save beside `out` and rename: Keras needs a path, and one that ends in .keras."""
    try:
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}.", suffix=".keras")
        os.close(handle)
        try:
            model.save(temporary)  # type: ignore[attr-defined]
            with Path(temporary).open("rb") as file:
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(out)
            atomic.flush_folder(out.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CompileError(f"{out}: can't be written ({error.strerror}); check the folder and its space") from error


def read_weights(path: Path | str) -> dict[str, Floats]:
    """The arrays of an .npz file by name; CompileError when it can't be read. Nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    # A lone .npy array is loaded too, and is no context manager.
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise CompileError(f"{path}: not an .npz file of plain arrays ({error})") from error


def main(argv: list[str]) -> int:
    """Run `pollen export`; returns 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="pollen export",
        description="Write a Keras model with the weights a fleet has trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="the .keras file the bundle was compiled from")
    parser.add_argument("--weights", type=Path, required=True, help=".npz with one array for each tensor name")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .keras file to write")
    options = parser.parse_args(argv)
    try:
        weights = read_weights(options.weights)
        with native_stderr_to_log():
            export_keras(options.model, weights, options.output)
    except PollenError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    values = sum(array.size for array in weights.values())
    print(f"{options.output}: {len(weights)} tensors, {values} parameters")  # noqa: T201 - a command's answer
    return 0
