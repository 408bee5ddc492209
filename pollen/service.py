"""What the three services share: their command line, signals and exit codes.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or settings.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pollen import __version__, logs, settings
from pollen.errors import PollenError, SettingsError

LOG = logging.getLogger("pollen")


@dataclass(frozen=True, slots=True)
class Logging:
    """`[logging]`: level (debug, info, warning, error) and format (text for people, json for collectors)."""

    level: str = "info"
    format: logs.LogFormat = "text"

    def __post_init__(self) -> None:
        if self.level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"level = {self.level!r} must be debug, info, warning or error")


class HasLogging(Protocol):
    """Settings of a service: whatever else they hold, they have a `[logging]` table."""

    @property
    def logging(self) -> Logging:
        """How to log."""


S = TypeVar("S", bound=HasLogging)


def run(
    argv: list[str] | None,
    *,
    name: str,
    description: str,
    examples: str,
    cls: type[S],
    serve: Callable[[S, threading.Event], None],
) -> int:
    """Parse the command line, load the settings, and call `serve(settings, stop)` until it returns.

    `stop` is set by SIGTERM and SIGINT; `serve` then finishes what it has accepted. Returns the exit code.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    parser.add_argument("--show-config", action="store_true", help="print the effective settings, secrets masked")
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    arguments = parser.parse_args(argv)
    try:
        loaded = settings.load(cls, arguments.config)
        if arguments.show_config:
            sys.stdout.write(settings.to_toml(loaded))
            return 0
        logs.setup(loaded.logging.level, loaded.logging.format)
        serve(loaded, stop_on_signals())
    except SettingsError as error:
        sys.stderr.write(f"error: {logs.one_line(str(error))}\n")
        return 2
    except PollenError as error:
        sys.stderr.write(f"error: {logs.one_line(str(error))}\n")
        return 1
    return 0


def stop_on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process the default way."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop
