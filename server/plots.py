"""Plots of a run from its history file: `pollen plot RUN` draws loss, error, staleness, weight and activity."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from pollen.errors import PollenError
from pollen.logs import one_line
from server.history import rotated

Event = dict[str, Any]

EXAMPLES = """examples:
  pollen plot runs/20260101-120000          # a demo's folder
  pollen plot state/history.jsonl -o plots  # a server's history
"""
SIZE_INCHES = (9, 5)


def main(argv: list[str] | None = None) -> int:
    """Draw all plots of a run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pollen plot",
        description="Draw a run's history as PNG files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a history.jsonl, or a folder with one")
    parser.add_argument("-o", "--output", type=Path, help="folder for the PNGs (default: plots/ beside the history)")
    arguments = parser.parse_args(argv)
    try:
        history = arguments.run / "history.jsonl" if arguments.run.is_dir() else arguments.run
        earlier = rotated(history)
        events = (read(earlier) if earlier.is_file() else []) + read(history)
        folder = arguments.output or history.parent / "plots"
        for path in draw(events, folder):
            sys.stdout.write(f"{path}\n")
    except PollenError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 1
    return 0


def read(path: Path) -> list[Event]:
    """The events of a history file; a last line cut short by a crash is left out. Raises PollenError."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PollenError(f"{path}: can't be read ({error.strerror}); give a run's folder or its history") from error
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise PollenError(f"{path}: line {number} is no JSON; is it a history file?") from error
            break
        if not isinstance(event, dict) or "event" not in event or not isinstance(event.get("time"), int | float):
            raise PollenError(f"{path}: line {number} is no event with its time; is it a history file?")
        events.append(event)
    return events


def draw(events: list[Event], folder: Path) -> list[Path]:
    """Write one PNG a plot that the events have data for into `folder`; returns their paths. Raises PollenError."""
    merges = [event for event in events if event["event"] == "merge"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    if not merges and not evaluations:
        raise PollenError("the history holds neither merges nor evaluations; there is nothing to draw")
    # Time stamps, not elapsed seconds: a restarted server counts those from zero again.
    start = min(event["time"] for event in events)
    plots: list[tuple[str, Callable[[Axes], None]]] = []
    if evaluations:
        plots.append(("evaluation", partial(_evaluation, evaluations=evaluations, start=start)))
    if merges:
        plots += [
            ("prequential_error", partial(_errors, merges=merges, start=start)),
            ("staleness", partial(_staleness, merges=merges)),
            ("weight", partial(_weight, merges=merges)),
            ("activity", partial(_activity, merges=merges, start=start)),
            ("bytes", partial(_bytes, merges=merges, start=start)),
        ]
    return [_draw_one(plot, folder / f"{name}.png") for name, plot in plots]


def _draw_one(plot: Callable[[Axes], None], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
    try:
        plot(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise PollenError(f"{path}: can't be written ({error.strerror}); give another folder with -o") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PollenError(f"{path.stem}: an event of the history has not the fields it needs ({error!r})") from error
    finally:
        plt.close(figure)
    return path


def _by_device(merges: list[Event]) -> dict[str, list[Event]]:
    devices: dict[str, list[Event]] = defaultdict(list)
    for merge in merges:
        devices[merge["device"]].append(merge)
    return dict(sorted(devices.items()))


def _evaluation(axes: Axes, evaluations: list[Event], start: float) -> None:
    times = [event["time"] - start for event in evaluations]
    axes.plot(times, [event["loss"] for event in evaluations], color="C0", marker=".", label="loss")
    axes.set(title="The global model on held-out data", xlabel="seconds", ylabel="loss")
    names = sorted({name for event in evaluations for name in event["metrics"]})
    if names:
        right = axes.twinx()
        for number, name in enumerate(names, 1):
            values = [event["metrics"].get(name) for event in evaluations]
            right.plot(times, values, color=f"C{number}", marker=".", label=name)
        right.set_ylabel(", ".join(names))
        right.legend(loc="center right")
    axes.legend(loc="center left")


def _errors(axes: Axes, merges: list[Event], start: float) -> None:
    for number, (device, own) in enumerate(_by_device(merges).items()):
        told = [merge for merge in own if "prequential_error" in merge["metrics"]]
        times = [merge["time"] - start for merge in told]
        color = f"C{number % 10}"
        axes.plot(times, [merge["metrics"]["prequential_error"] for merge in told], color=color, label=device)
        baseline = [merge["metrics"].get("baseline_error") for merge in told]
        axes.plot(times, baseline, color=color, linestyle=":", linewidth=1)
    axes.set(title="Prequential error of each device (dotted: its baseline)", xlabel="seconds", ylabel="error")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", ncols=2)


def _staleness(axes: Axes, merges: list[Event]) -> None:
    staleness = [merge["staleness"] for merge in merges]
    bins = range(max(staleness) + 2) if max(staleness) < 60 else 60
    axes.hist(staleness, bins=bins, align="left", rwidth=0.9)
    axes.set(title="Staleness of merged updates", xlabel="merges between base version and merge", ylabel="updates")


def _weight(axes: Axes, merges: list[Event]) -> None:
    dots = axes.scatter(
        [merge["staleness"] for merge in merges],
        [merge["weight"] for merge in merges],
        c=[merge["samples"] for merge in merges],
        s=12,
        cmap="viridis",
    )
    axes.set(title="Weight given to each update", xlabel="staleness (merges)", ylabel="weight", ylim=(0, 1.05))
    axes.figure.colorbar(dots, ax=axes, label="samples")


def _activity(axes: Axes, merges: list[Event], start: float) -> None:
    rows = {device: row for row, device in enumerate(_by_device(merges))}
    dots = axes.scatter(
        [merge["time"] - start for merge in merges],
        [rows[merge["device"]] for merge in merges],
        c=[merge["staleness"] for merge in merges],
        s=36,
        cmap="viridis_r",
    )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(title="When each device's updates were merged", xlabel="seconds", ylim=(-0.7, len(rows) - 0.3))
    axes.figure.colorbar(dots, ax=axes, label="staleness (merges)")


def _bytes(axes: Axes, merges: list[Event], start: float) -> None:
    total = 0
    times, totals = [], []
    for merge in merges:
        total += merge["size_bytes"]
        times.append(merge["time"] - start)
        totals.append(total / 1024)
    axes.step(times, totals, where="post")
    axes.set(title="Uploaded in merged updates", xlabel="seconds", ylabel="KiB, all devices")


if __name__ == "__main__":
    raise SystemExit(main())
