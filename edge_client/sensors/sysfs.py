"""A device's folder in sysfs: found by what the driver calls the device, read attribute by attribute."""

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client.sensors.number import number
from pollen.errors import SensorError, SettingsError

_PAGE_BYTES: Final = 4096  # the longest a sysfs attribute can be
# The device itself is gone. Other errors are those of one attribute: disabled, busy, no answer on the bus.
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class SysfsFolder:
    """An open folder. It stays that of the same device: a driver loaded again may get another device's number."""

    def __init__(self, path: Path, title: str) -> None:
        self.title = title
        try:
            self._folder: int | None = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SensorError(f"{title} can't be opened: {error}") from error

    def attributes(self) -> list[str]:
        """The names of all attributes, sorted. Raises SensorError."""
        try:
            return sorted(os.listdir(self._opened()))  # noqa: PTH208 - a path can't stand for an open folder
        except OSError as error:
            raise SensorError(f"{self.title} is gone: {error}") from error

    def text(self, name: str) -> str:
        """An attribute's text without its line end, "" when it isn't UTF-8. Raises OSError."""
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._opened())
        try:
            content = os.read(file, _PAGE_BYTES)
        finally:
            os.close(file)
        try:
            return content.decode().strip()
        except UnicodeDecodeError:
            return ""

    def values(self, names: list[str]) -> list[float]:
        """The attributes' numbers, NaN for one that can't be read or says none.

        Raises SensorError when the device is gone, or none of them can be read.
        """
        found = []
        failure = None
        for name in names:
            try:
                found.append(number(self.text(name)))
            except OSError as error:
                if error.errno in _GONE:
                    raise SensorError(f"{self.title} is gone: {name}: {os.strerror(error.errno)}") from error
                failure = f"{name}: {error.strerror}"
                found.append(math.nan)
        if failure and all(map(math.isnan, found)):
            raise SensorError(f"{self.title} can't be read: {failure}")
        return found

    def close(self) -> None:
        """Release the folder; more than once does no harm."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def _opened(self) -> int:
        if self._folder is None:
            raise SensorError(f"{self.title} is closed")
        return self._folder


def find_device(
    root: Path, pattern: str, wanted: str, at: str, *, option: str, location: Callable[[Path], str]
) -> SysfsFolder:
    """Open the folder under `root` whose attribute `name` or `label` is `wanted`.

    `at` chooses among devices of one name by where they are, `location(folder)`, such as "1-0076" on I2C. `option`
    is what the setting for `wanted` is called. Raises SensorError when there is none, SettingsError when several fit.
    """
    folders = {path: _names(path) for path in sorted(root.glob(pattern))}
    fitting = [path for path, names in folders.items() if wanted in names and at in ("", location(path))]
    if not fitting:
        here = ", ".join(sorted({f"{names[0]} at {location(path)}" for path, names in folders.items()})) or "none"
        place = f" at {at}" if at else ""
        raise SensorError(f"no device {wanted!r}{place} under {root}; there are: {here}; is its driver loaded?")
    if len(fitting) > 1:
        places = ", ".join(location(path) for path in fitting)
        raise SettingsError(
            f"sensor.options.{option} = {wanted!r} names several devices; set sensor.options.at to one of {places}"
        )
    return SysfsFolder(fitting[0], f"{option} {wanted!r} ({fitting[0]})")


def _names(folder: Path) -> list[str]:
    """What the device may be called: its driver's name, then its label from the device tree."""
    names = []
    for attribute in ("name", "label"):
        try:
            with (folder / attribute).open("rb") as file:
                names.append(" ".join(file.read(_PAGE_BYTES).decode(errors="replace").split()))
        except OSError:
            names.append("")
    return names
