"""Other parts of Pollen that the demo runs to completion: compiler, exporter, plots; each a process with a log."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from pollen.demo.console import Screen
from pollen.demo.processes import Processes, entry
from pollen.errors import PollenError


class StoppedError(PollenError):
    """The user asked the demo to end."""


def run(
    processes: Processes,
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    what: str,
    screen: Screen,
    stop: threading.Event | None,
) -> None:
    """Run `module.main(arguments)` in a process of its own and show progress.

    Raises PollenError with the tool's own error line, StoppedError when `stop` is set meanwhile.
    """
    child = processes.start(module, "tool", entry(module, *arguments), log)
    with screen.working(what) as beat:
        while True:
            try:
                code = child.process.wait(0.25)
            except subprocess.TimeoutExpired:
                beat()
            else:
                break
            if stop is not None and stop.is_set():
                child.process.kill()
                child.process.wait()
                raise StoppedError("interrupted")
    if code:
        raise PollenError(_reason(log, what, code))


def _reason(log: Path, what: str, code: int) -> str:
    """The last line that starts with "error:", else the last line of `log`."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    ended = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"{what} failed ({ended}): {lines[-1] if lines else 'it said nothing'}; its log: {log}"
