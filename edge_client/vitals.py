"""What the machine and this process are doing, through psutil."""

import os
from pathlib import Path

import psutil


def machine(folder: Path) -> dict[str, float]:
    """Vitals of the machine and the process; `folder` is the one whose disk matters. Units are in the names."""
    values = {
        "rss_bytes": float(rss_bytes()),
        "load_1min": os.getloadavg()[0],
        "ram_free_bytes": float(psutil.virtual_memory().available),
        "disk_free_bytes": float(psutil.disk_usage(str(folder)).free),
    }
    temperatures = [entry.current for entries in psutil.sensors_temperatures().values() for entry in entries]
    if temperatures:
        values["temperature_celsius"] = float(max(temperatures))
    return values


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def ram_bytes() -> int:
    """Memory of the machine."""
    return int(psutil.virtual_memory().total)
