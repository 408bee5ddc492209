"""Device folders laid out as the kernel does: an entry under the class that points into /sys/devices."""

from collections.abc import Mapping
from pathlib import Path


def hwmon(sys: Path, number: int, attributes: Mapping[str, str], at: str = "thermal_zone0") -> Path:
    """A chip /sys/class/hwmon/hwmon<number>, behind it the device `at`; returns its folder."""
    device = sys / "devices" / at
    folder = device / "hwmon" / f"hwmon{number}"
    write(folder, attributes)
    (folder / "device").symlink_to(device)
    return _listed(sys / "class" / "hwmon", folder)


def iio(sys: Path, number: int, attributes: Mapping[str, str], at: str = "1-0076") -> Path:
    """A device /sys/bus/iio/devices/iio:device<number> that hangs on `at`; returns its folder."""
    folder = sys / "devices" / at / f"iio:device{number}"
    write(folder, attributes)
    return _listed(sys / "bus" / "iio" / "devices", folder)


def write(folder: Path, attributes: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in attributes.items():
        (folder / name).write_text(text + "\n")


def _listed(listing: Path, folder: Path) -> Path:
    listing.mkdir(parents=True, exist_ok=True)
    (listing / folder.name).symlink_to(folder)
    return folder
