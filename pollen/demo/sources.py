"""What each device of a demo senses: this machine, each device from its own view, or its part of a recording."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from pollen.demo import split
from pollen.demo.recording import Task

LIVE_PERIOD_S: Final = 0.2
# 20 s: what is far from usual is judged by the last moments, whether the machine is busy or idle just now.
LIVE_MEMORY_SAMPLES: Final = 100
LIVE_CHANNELS: Final = 8  # of the sensor "host"; a ninth is the temperature
_SHORTEST_PERIOD_S: Final = 0.01
_SECONDS_BETWEEN_UPDATES: Final = 3.0
_SPARE_S: Final = 5.0  # a recording lasts so much longer than the run, for nothing may be replayed twice


@dataclass(frozen=True, slots=True)
class Source:
    """One device's tables `[sensor]` and `[learner]`, how many new samples make it train, and what it is in words."""

    sensor: Mapping[str, Any]
    learner: Mapping[str, Any]
    new_samples: int
    words: str


def has_thermometer() -> bool:
    """Whether this machine shows a temperature."""
    return any(psutil.sensors_temperatures().values()) if hasattr(psutil, "sensors_temperatures") else False


def live(names: list[str]) -> dict[str, Source]:
    """Each device watches another pair of core and network interface, as far as there are some, at another moment."""
    cores = psutil.cpu_count() or 1
    traffic = psutil.net_io_counters(pernic=True)
    interfaces = sorted(name for name, counters in traffic.items() if counters.bytes_recv + counters.bytes_sent)
    temperature = has_thermometer()
    sources = {}
    for index, name in enumerate(names):
        options: dict[str, Any] = {"core": index % cores, "temperature": temperature}
        words = f"core {options['core']}"
        if interfaces:
            options["interface"] = interfaces[index // cores % len(interfaces)]
            words += f", {options['interface']}"
        sources[name] = Source(
            sensor={
                "kind": "host",
                "period_s": LIVE_PERIOD_S,
                "phase_s": round(LIVE_PERIOD_S * index / len(names), 4),
                "options": options,
            },
            learner={
                "target": "next",
                "replay_samples": 1000,
                "standardise": True,
                "memory_samples": LIVE_MEMORY_SAMPLES,
            },
            new_samples=_new_samples(LIVE_PERIOD_S),
            words=words,
        )
    return sources


def replayed(names: list[str], data: split.Split, folder: Path, seconds: float) -> dict[str, Source]:
    """Each device replays its part once in `seconds`; the parts are written to `folder`.

    Never twice: an example that was learned from before would be predicted too well.
    """
    task: Task = data.recording.task
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for index, (name, part) in enumerate(zip(names, data.parts, strict=True)):
        path = folder / f"{name}.npz"
        split.write_part(path, part, data.recording.channels)
        period_s = max(_SHORTEST_PERIOD_S, round((seconds + _SPARE_S) / len(part.x), 4))
        sources[name] = Source(
            sensor={
                "kind": "replay",
                "period_s": period_s,
                "phase_s": round(period_s * index / len(names), 5),
                "options": {"file": str(path.resolve())},
            },
            learner={
                "target": "next" if task == "forecast" else "label",
                "replay_samples": 2000,
                "standardise": False,  # done here, so that the server's holdout is in the same units
            },
            new_samples=_new_samples(period_s),
            words=f"subject {', '.join(part.subjects)}",
        )
    return sources


def _new_samples(period_s: float) -> int:
    return max(4, min(256, round(_SECONDS_BETWEEN_UPDATES / period_s)))
