"""Everything before the first process of the fleet starts: the run's folder, the data, the model, the plan."""

import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from pollen.demo import compiled, models, sources, split
from pollen.demo.console import Screen
from pollen.demo.fleet import Plan
from pollen.demo.options import Options
from pollen.demo.processes import Processes
from pollen.demo.recording import Array, DataError, Floats, Recording
from pollen.errors import PollenError

CACHE: Final = Path(".cache/pollen")
TASKS: Final[dict[str, Any]] = {"epochs": 1, "max_steps": 60}


def device_names(count: int) -> list[str]:
    """pi-01, pi-02, …"""
    return [f"pi-{number:02d}" for number in range(1, count + 1)]


def read_data(options: Options) -> split.Split | None:
    """The recording, split over the devices; None for live telemetry. Raises DataError."""
    if options.data is None:
        return None
    return split.split(options.data, split.read(options.data), options.devices, options.seed)


def run_folder(output: Path) -> Path:
    """A new folder for this run, named by the local time. Raises PollenError when it can't be made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = output / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
            (folder / "logs").mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise PollenError(f"{folder}: can't be made ({error.strerror}); give another with --output") from error
        return folder
    raise PollenError(f"{output / stamp}: a hundred runs began in this second; wait one")


def plan(
    options: Options,
    data: split.Split | None,
    folder: Path,
    *,
    processes: Processes,
    screen: Screen,
    stop: threading.Event,
) -> Plan:
    """Compile the model, write what the devices replay, and say who senses what. Raises PollenError."""
    names = device_names(options.devices)
    recording = None if data is None else data.recording
    channels = _channels(recording)
    model = compiled.prepare(
        models.design(recording, channels, options.seed),
        options.model,
        folder=folder,
        cache=CACHE / "bundles",
        processes=processes,
        screen=screen,
        stop=stop,
    )
    holdout: Path | None = None
    if data is None:
        devices = sources.live(names)
    else:
        devices = sources.replayed(names, data, folder / "data", options.seconds)
        holdout = folder / "data" / "holdout.npz"
        x, y = _holdout(options, data, compiled.window_of(model.bundle, channels))
        np.savez(holdout, X=x.reshape(-1, *model.bundle.manifest.input_shape), y=y)
    return Plan(
        folder=folder,
        keras=model.keras,
        bundle=model.path,
        sources=devices,
        cut_device=names[-1] if options.cut_device else None,
        tasks=TASKS,
        holdout=holdout,
    )


def describe(recording: Recording | None, path: Path | None) -> str:
    """One line: what the fleet is to learn, and from what."""
    if recording is None:
        return "Live telemetry of this machine; to learn: forecast the next reading."
    goal = {
        "classification": f"tell {len(recording.classes)} classes apart (rows in shuffled order)",
        "regression": "estimate the target",
        "forecast": "forecast the next reading",
    }[recording.task]
    skipped = f" ({recording.skipped} incomplete rows left out)" if recording.skipped else ""
    shape = " x ".join(map(str, recording.x.shape[1:]))
    return f"{path}: {len(recording.x)} rows of {shape}{skipped}; to learn: {goal}."


def _channels(recording: Recording | None) -> int:
    if recording is not None:
        return int(recording.x.shape[-1])
    return sources.LIVE_CHANNELS + sources.has_thermometer()


def _holdout(options: Options, data: split.Split, window: int) -> tuple[Floats, Array]:
    try:
        return split.holdout_examples(data, window)
    except DataError as error:
        raise DataError(f"{options.data}: {error}") from error
