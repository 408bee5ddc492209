"""Recorded data, replayed reading by reading."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.sensors import Channel, EndOfStreamError, Options, Reading
from edge_client.sensors.options import parse
from pollen.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`file`: an .npz with `X` [n, T, C] (each window one burst) or [n, C], optional `y` [n] (labels) and
    `channels` [C] (names); `loop`: start again at the end."""

    file: str
    loop: bool = False


class ReplaySensor:
    """Gives the file's rows in order, the next one at each reading. Integer `y` are classes, others targets."""

    def __init__(self, options: Options) -> None:
        chosen = parse(ReplayOptions, options)
        path = Path(chosen.file)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                x = arrays["X"]
                self._y = arrays.get("y")
                names = arrays["channels"].tolist() if "channels" in arrays else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SettingsError(f"sensor.options.file: {path} can't be read as .npz with X: {error}") from error
        if x.ndim not in (2, 3) or 0 in x.shape or x.dtype.kind not in "fiub":
            raise SettingsError(
                f"sensor.options.file: {path}: X is {x.dtype} {x.shape}; it must be [n, C] or [n, T, C]"
            )
        if self._y is not None and (self._y.shape != (len(x),) or self._y.dtype.kind not in "fiub"):
            raise SettingsError(f"sensor.options.file: {path}: y must be {len(x)} numbers, one a row of X")
        self._x = x[:, None, :] if x.ndim == 2 else x
        names = names or [f"channel_{index}" for index in range(x.shape[-1])]
        if len(names) != x.shape[-1]:
            raise SettingsError(f"sensor.options.file: {path}: channels names {len(names)} of {x.shape[-1]} channels")
        self._channels = tuple(Channel(str(name), "") for name in names)
        self._loop = chosen.loop
        self._next = 0

    @property
    def channels(self) -> tuple[Channel, ...]:
        """As named in the file; units are not recorded."""
        return self._channels

    def read(self) -> Reading:
        """The next row or window; EndOfStreamError after the last, unless it loops."""
        if self._next == len(self._x):
            if not self._loop:
                raise EndOfStreamError
            self._next = 0
        row = self._next
        self._next += 1
        label = None if self._y is None else self._y[row].item()
        return Reading(np.asarray(self._x[row], np.float32), label)

    def close(self) -> None:
        """The file was read whole when it was opened."""
