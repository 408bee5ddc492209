"""Recorded sensor data in a NumPy file: arrays X, and where there are any scale, y, subject or device."""

import zipfile
from pathlib import Path

import numpy as np

from pollen.demo.recording import Array, DataError, Recording, finished


def read(path: Path) -> Recording:
    """Read `X` [n, T, C] or [n, C]; optional `scale` [C] (factors), `y` [n], `channels` [C], `classes` [K];
    and `subject` or `device` [n]. Pickled objects are refused. Raises DataError naming file and array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise DataError(f"{path}: a single array; save it with numpy.savez(FILE, X=…, device=…)")
            wanted = ("X", "scale", "y", "subject", "device", "channels", "classes")
            arrays: dict[str, Array] = {name: archive[name] for name in wanted if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: can't be read as .npz: {error}") from error
    x = _samples(path, arrays)
    owner = "subject" if "subject" in arrays else "device"
    if owner not in arrays:
        raise DataError(f"{path}: needs an array 'subject' or 'device' [n] that says whose data each row of X is")
    for name in (owner, "y"):
        if name in arrays and arrays[name].shape != (len(x),):
            raise DataError(f"{path}: {name} has shape {list(arrays[name].shape)}, X has {len(x)} rows")
    labels = arrays.get("y")
    if labels is not None and labels.dtype.kind not in "iufbU":
        raise DataError(f"{path}: y must hold integers (classes), floats (values) or text, not {labels.dtype}")
    if labels is not None and labels.dtype.kind == "b":
        labels = labels.astype(np.int32)
    count = x.shape[-1]
    channels = tuple(str(name) for name in arrays.get("channels", ()))
    if len(channels) != count:
        channels = tuple(f"channel {number}" for number in range(1, count + 1))
    class_names = tuple(str(name) for name in arrays.get("classes", ()))
    return finished(path, x, labels, subject=arrays[owner], channels=channels, class_names=class_names)


def _samples(path: Path, arrays: dict[str, Array]) -> Array:
    if "X" not in arrays:
        raise DataError(f"{path}: needs an array 'X' of shape [n, T, C] or [n, C]")
    x = arrays["X"]
    if x.ndim not in (2, 3) or x.dtype.kind not in "iuf" or 0 in x.shape:
        raise DataError(f"{path}: X must be numbers of shape [n, T, C] or [n, C], not {x.dtype} {list(x.shape)}")
    x = x.astype(np.float32)
    if "scale" in arrays:
        scale = arrays["scale"]
        if scale.shape not in ((), (x.shape[-1],)) or scale.dtype.kind not in "iuf":
            raise DataError(f"{path}: scale must be [{x.shape[-1]}], one factor a channel, not {list(scale.shape)}")
        x *= scale.astype(np.float32)
    return x
