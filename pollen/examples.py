"""Examples from an .npz file, checked against a model before anything is done with them."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pollen.errors import SettingsError
from pollen.manifest import Manifest

LIMIT_BYTES: Final = 512 * 2**20  # of the arrays, unpacked

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs `x` [n, …] of the model's dtype, n >= 1, and their labels `y` [n, …], None when there are none."""

    x: Array
    y: Array | None


def read(path: Path, manifest: Manifest) -> Examples:
    """The arrays `x` (or `X`) and, if it is there, `y` of an .npz file.

    Raises SettingsError, naming the file, when it can't be read, is too large, holds Python objects or values that are
    not finite, or doesn't fit the model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LIMIT_BYTES:
            raise SettingsError(f"{path}: {size} bytes unpacked, at most {LIMIT_BYTES} are read; give fewer examples")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name.lower(): arrays[name] for name in arrays.files if name in ("x", "X", "y")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SettingsError(f"{path}: needs plain arrays x and y in an .npz file ({error})") from error
    if "x" not in found:
        raise SettingsError(f"{path}: holds no array x; np.savez('{path.name}', x=inputs, y=labels) makes one")
    x = _numbers(path, "x", found["x"], manifest.input_dtype, manifest.input_shape)
    if manifest.input_dtype == "int32" and not (x.min() >= 0 and x.max() < manifest.input_below):
        raise SettingsError(f"{path}: x must hold whole numbers from 0 to {manifest.input_below - 1}")
    y = found.get("y")
    if y is None:
        return Examples(x, None)
    if len(y) == len(x) and math.prod(y.shape[1:]) == math.prod(manifest.label_shape):
        y = y.reshape(len(y), *manifest.label_shape)  # labels [n] of a model that takes [n, 1], and the reverse
    y = _numbers(path, "y", y, manifest.label_dtype, manifest.label_shape)
    if len(y) != len(x):
        raise SettingsError(f"{path}: {len(x)} examples x with {len(y)} labels y")
    if manifest.label_dtype == "int32" and not (y.min() >= 0 and y.max() < manifest.output_shape[-1]):
        raise SettingsError(f"{path}: y must hold classes from 0 to {manifest.output_shape[-1] - 1}")
    return Examples(x, y)


def _numbers(path: Path, name: str, values: Array, dtype: str, example: tuple[int, ...]) -> Array:
    if values.dtype.kind not in "fiub" or not len(values.shape) or values.shape[1:] != example or not len(values):
        shape = ", ".join(["n", *map(str, example)])
        raise SettingsError(
            f"{path}: {name} is {values.dtype} {list(values.shape)}, the model takes numbers of shape [{shape}], n >= 1"
        )
    if not np.isfinite(values).all():
        raise SettingsError(f"{path}: {name} holds NaN or infinity; leave such examples out")
    return values.astype(dtype)
