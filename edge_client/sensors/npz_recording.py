"""A recording in NumPy's .npz, its arrays read row by row from the archive."""

import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.sensors.recording import Row
from edge_client.sensors.screening import LARGEST_BURST
from pollen.errors import SensorError, SettingsError

LARGEST_COLUMNWISE_BYTES: Final = 256 * 2**20
_DAMAGE: Final = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class NpzRecording:
    """Arrays `X` [n, T, C] (each window one burst) or [n, C]; optional `y` [n] (integers are classes, floats targets),
    `channels` [C] (names), `scale` [C] (factors), and [n] times in seconds, in the array `time` unless `time` names
    another one."""

    def __init__(self, path: Path, time: str) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                found = {name.removesuffix(".npy") for name in archive.namelist()}
                if "X" not in found:
                    raise ValueError("there is no array X")
                self._x, *columns = [_Array(archive, path, n) for n in ("X", "y", time or "time") if n in found]
                count = self._x.shape[-1] if self._x.shape else 0
                names, scale = (_listed(archive, path, n, count) if n in found else None for n in ("channels", "scale"))
        except _DAMAGE as error:
            raise SettingsError(f"sensor.options.file: {path} can't be read as .npz with X: {error}") from error
        self._y = next((column for column in columns if column.name == "y"), None)
        self._time = next((column for column in columns if column.name != "y"), None)
        self.timed = self._time is not None
        if time and not self.timed:
            raise SettingsError(f"sensor.options.time: {path} has no array {time!r}")
        if len(self._x.shape) not in (2, 3) or 0 in self._x.shape or self._x.dtype.kind not in "fiub":
            raise SettingsError(
                f"sensor.options.file: {path}: X is {self._x.dtype} {self._x.shape}; it must be [n, C] or [n, T, C]"
            )
        if math.prod(self._x.shape[1:]) > LARGEST_BURST:
            raise SettingsError(f"sensor.options.file: {path}: a row of X has more than {LARGEST_BURST} values")
        for column in columns:
            if column.shape != self._x.shape[:1] or column.dtype.kind not in "fiub":
                raise SettingsError(
                    f"sensor.options.file: {path}: {column.name} must be {self._x.shape[0]} numbers, one a row of X"
                )
        self.channels = tuple(map(str, names)) if names else tuple(f"channel_{index}" for index in range(count))
        if len(set(self.channels)) < count:
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
                yield Row(row, label.item() if label is not None else None, None if time is None else float(time))
        except _DAMAGE as error:
            raise SensorError(f"{self._path} can't be read any further: {error}") from error


class _Array:
    """One array of the archive. Raises ValueError when it holds objects."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        self.name = name
        self._path = path
        with archive.open(f"{name}.npy") as file:
            self.shape, self._columnwise, self.dtype = _header(file)
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects; save numbers")
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
            _header(file)
            for _ in range(self.shape[0]):
                content = file.read(values * self.dtype.itemsize)
                yield np.frombuffer(content, self.dtype, values).reshape(self.shape[1:])


def _listed(archive: zipfile.ZipFile, path: Path, name: str, count: int) -> list[Any]:
    """The elements of an array with one for each channel. Raises ValueError when it has another shape."""
    array = _Array(archive, path, name)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}; it must be ({count},), one element a channel")
    return [element.item() for element in array.rows()]


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is stored column by column, and dtype."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"an array in version {version} of numpy's format")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read[version](file)
    return found
