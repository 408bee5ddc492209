"""A recording in NumPy's .npz, its arrays read row by row from the archive."""

import io
import itertools
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.sensors.recording import Row
from edge_client.sensors.screening import LARGEST_BURST
from pollen.errors import SensorError, SettingsError

LARGEST_COLUMNWISE_BYTES: Final = 256 * 2**20
_LARGEST_HEADER_BYTES: Final = 2**16
_LARGEST_ITEM_BYTES: Final = 1024


class NpzRecording:
    """Arrays `X` [n, T, C] (each window one burst) or [n, C]; optional `y` [n] (integers are classes, floats targets),
    `channels` [C] (names), `scale` [C] (factors), and [n] times in seconds, in the array `time` unless `time` names
    another one."""

    def __init__(self, path: Path, time: str) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                found = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
                if "X" not in found:
                    raise ValueError("there is no array X")
                self._x = _windows(_Array(archive, path, "X"))
                columns = [_column(_Array(archive, path, n), self._x) for n in ("y", time or "time") if n in found]
                count = self._x.shape[-1]
                names = _listed(_Array(archive, path, "channels"), count, "U") if "channels" in found else None
                scale = _listed(_Array(archive, path, "scale"), count, "fiub") if "scale" in found else None
        except Exception as error:  # zipfile and numpy raise a dozen kinds for what is damaged or no such file
            raise SettingsError(f"sensor.options.file: {path} can't be used as .npz: {error}") from error
        self._y = next((column for column in columns if column.name == "y"), None)
        self._time = next((column for column in columns if column.name != "y"), None)
        self.timed = self._time is not None
        if time and not self.timed:
            raise SettingsError(f"sensor.options.time: {path} has no array {time!r}")
        self.channels = tuple(names or (f"channel_{index}" for index in range(count)))
        if len(set(self.channels)) < count or "" in self.channels:
            raise SettingsError(f"sensor.options.file: {path}: channels must be {count} names, each another one")
        self._scale = np.ones(count, np.float32) if scale is None else np.array(scale, np.float32)

    def rows(self) -> Iterator[Row]:
        """All rows from the first. Raises SensorError when the file can't be read any further."""
        labels, times = (
            itertools.repeat(None) if column is None else column.rows() for column in (self._y, self._time)
        )
        try:
            for values, label, time in zip(self._x.rows(), labels, times, strict=False):
                with np.errstate(over="ignore", invalid="ignore"):
                    row = values.astype(np.float32).reshape(-1, len(self.channels)) * self._scale
                moment = None if time is None or not np.isfinite(time) else float(time)
                yield Row(row, None if label is None else label.item(), moment, is_bad=moment is None and self.timed)
        except Exception as error:  # see above
            raise SensorError(f"{self._path} can't be read any further: {error}") from error


class _Array:
    """One array of the archive. Raises ValueError when it holds objects, or can't be read piece by piece."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        self.name = name
        self._path = path
        if archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of others zipfile unpacks more at once than was asked for.
            raise ValueError(f"{name} is packed in another way than numpy does")
        with archive.open(f"{name}.npy") as file:
            start = io.BytesIO(file.read(_LARGEST_HEADER_BYTES))
        self.shape, self._columnwise, self.dtype = _header(start)
        self._begins_at = start.tell()
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects; save numbers")
        if self.dtype.itemsize > _LARGEST_ITEM_BYTES:
            raise ValueError(f"{name} has elements of {self.dtype.itemsize} bytes; at most {_LARGEST_ITEM_BYTES}")
        size = math.prod(self.shape) * self.dtype.itemsize
        if self._columnwise and size > LARGEST_COLUMNWISE_BYTES:
            raise ValueError(
                f"{name} is stored column by column, so it would need {size >> 20} MiB of memory; "
                "save numpy.ascontiguousarray of it"
            )

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """The rows, or the elements if it has one dimension."""
        if self._columnwise:
            with np.load(self._path, allow_pickle=False) as arrays:
                yield from arrays[self.name]
            return
        values = math.prod(self.shape[1:])
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{self.name}.npy") as file:
            file.seek(self._begins_at)
            for _ in range(self.shape[0]):
                content = file.read(values * self.dtype.itemsize)
                yield np.frombuffer(content, self.dtype, values).reshape(self.shape[1:])


def _windows(x: _Array) -> _Array:
    """X, checked. Raises ValueError."""
    if len(x.shape) not in (2, 3) or min(x.shape) < 1 or x.dtype.kind not in "fiub":
        raise ValueError(f"X is {x.dtype} {x.shape}; it must be numbers [n, C] or [n, T, C]")
    if math.prod(x.shape[1:]) > LARGEST_BURST:
        raise ValueError(f"a row of X has more than {LARGEST_BURST} values")
    return x


def _column(column: _Array, x: _Array) -> _Array:
    """Labels or times, checked. Raises ValueError."""
    if column.shape != x.shape[:1] or column.dtype.kind not in "fiub":
        raise ValueError(f"{column.name} must be {x.shape[0]} numbers, one a row of X")
    return column


def _listed(array: _Array, count: int, kinds: str) -> list[Any]:
    """The elements of an array with one for each channel. Raises ValueError when it has another shape or dtype."""
    if array.shape != (count,) or array.dtype.kind not in kinds:
        what = "names" if kinds == "U" else "numbers"
        raise ValueError(f"{array.name} is {array.dtype} {array.shape}; it must be {count} {what}, one a channel")
    return [element.item() for element in array.rows()]


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is stored column by column, and dtype."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"an array in version {version} of numpy's format")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read[version](file)
    return found
