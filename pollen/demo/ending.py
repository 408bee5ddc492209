"""The end of a demo: stop in order, check that nothing was lost, and leave behind what was learned."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Final

from pollen.demo import audit, table, tools
from pollen.demo.audit import Outbox
from pollen.demo.console import Screen
from pollen.demo.fleet import Fleet
from pollen.demo.observer import Observer
from pollen.demo.processes import Child, Processes
from pollen.demo.summary import Summary, summarise
from pollen.demo.watch import Watch
from pollen.errors import PollenError

_SETTLE_S: Final = 3.0


def stop_devices(fleet: Fleet, observer: Observer, screen: Screen) -> list[str]:
    """Stop the devices and wait until the observer saw their last receipts.

    Returns a line for each device that had to be killed.
    """
    with screen.working("Stopping the devices; each waits for its last receipt"):
        late = fleet.stop_devices()
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            with observer.lock:
                if all(seen.published.keys() <= seen.outcomes.keys() for seen in observer.devices.values()):
                    break
            time.sleep(0.05)
    return [_late_line(child) for child in late]


def stop_services(fleet: Fleet, screen: Screen) -> list[str]:
    """Stop gateway, server and broker; returns a line for each that had to be killed."""
    with screen.working("Stopping gateway, server and broker"):
        return [_late_line(child) for child in fleet.stop_services()]


def accident_lines(processes: Processes) -> list[str]:
    """A line for each process that ended though nobody asked it to, or ended badly."""
    lines = []
    for child in processes.accidents():
        code = child.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        lines.append(f"{child.name} {how}: {child.last_line()}; its log: {child.log}")
    return lines


def losses(fleet: Fleet, observer: Observer, watch: Watch) -> list[str]:
    """A line for each update that is missing somewhere; see `audit`."""
    watch.history.read()
    outboxes: dict[str, Outbox] = {}
    unreadable = []
    for name in fleet.devices:
        try:
            outboxes[name] = audit.read_outbox(fleet.device_state(name) / "outbox.sqlite")
        except PollenError as error:
            unreadable.append(str(error))
    with observer.lock:
        return unreadable + audit.losses(outboxes, observer.devices, watch.history.events)


def conclude(fleet: Fleet, observer: Observer, watch: Watch, processes: Processes) -> Summary:
    """The figures of the run, also written to summary.json."""
    with observer.lock:
        vitals = {name: dict(seen.vitals) for name, seen in observer.devices.items()}
    summary = summarise(
        watch.history.events,
        seconds=watch.ended_at - watch.began_at,
        vitals=vitals,
        peak_rss_bytes=processes.peak_rss(),
        cut=watch.story,
    )
    folder = fleet.plan.folder
    (folder / "summary.json").write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def leave_behind(fleet: Fleet, processes: Processes, screen: Screen) -> list[str]:
    """history.jsonl, the plots and final.keras in the run's folder; returns a line for each that failed."""
    folder = fleet.plan.folder
    if not fleet.history.is_file():
        return ["the server wrote no history"]
    shutil.copyfile(fleet.history, folder / "history.jsonl")
    failures = []
    for what, module, arguments in (
        ("Drawing the plots", "server.plots", [str(folder)]),
        (
            "Writing the trained Keras model",
            "pollen.compiler.export",
            [
                str(fleet.plan.keras),
                f"--weights={fleet.history.with_name('final.npz')}",
                f"--output={folder / 'final.keras'}",
            ],
        ),
    ):
        log = folder / "logs" / f"{module.rsplit('.', 1)[1]}.log"
        try:
            tools.run(processes, module, arguments, log=log, what=what, screen=screen, stop=None)
        except PollenError as error:
            failures.append(str(error))
    return failures


def say_summary(summary: Summary, screen: Screen, folder: Path, baseline: str) -> None:
    """Print the summary and where everything is."""
    screen.say("")
    for line in table.summary_lines(summary, baseline):
        screen.say(line)
    screen.say(f"all of it    {folder}/ ({', '.join(sorted(path.name for path in folder.iterdir()))})")


def _late_line(child: Child) -> str:
    return f"{child.name} did not end when asked and was killed; its log: {child.log}"
