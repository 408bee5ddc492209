"""Reading systemd unit files, as far as the tests need them."""

from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
SYSTEMD: Final = PROJECT / "deploy" / "systemd"
UNITS: Final = tuple(sorted(SYSTEMD.glob("*.service")))
MOSQUITTO_UNITS: Final = (Path("/lib/systemd/system"), Path("/usr/lib/systemd/system"))

Section = dict[str, list[str]]


def read(path: Path) -> dict[str, Section]:
    """Each section's settings, in order; one given several times has several values."""
    sections: dict[str, Section] = {}
    current: Section = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            current.setdefault(name, []).append(value)
    return sections


def one(path: Path, name: str, section: str = "Service") -> str:
    """The value of a setting that is given once."""
    (value,) = read(path)[section][name]
    return value


def seconds(text: str) -> float:
    """A time span given in seconds, or "infinity"."""
    return float(text)
