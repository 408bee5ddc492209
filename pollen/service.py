"""What the three services share: their command line, signals and exit codes.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or settings. SIGTERM and SIGINT stop, SIGHUP reads the settings
file again.
"""

import argparse
import logging
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pollen import __version__, logs, settings
from pollen.errors import PollenError, SettingsError, missing_package

LOG = logging.getLogger("pollen")

DESCRIPTORS = 65_536


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


class Reloads(Generic[S]):
    """SIGHUP: the settings read again. `live`: the settings (dotted, or whole tables) that a running process takes
    over; `[logging]` always is. What else has changed is named in the log and waits for a restart."""

    def __init__(self, current: S, load: Callable[[], S], live: Sequence[str] = ()) -> None:
        self._current = current
        self._load = load
        self._live = ("logging", *live)
        self._asked = threading.Event()

    def ask(self) -> None:
        """What a SIGHUP does."""
        self._asked.set()

    def take(self) -> S | None:
        """The settings as they are now, when that was asked for since the last call, else None. To be called from the
        service's main loop. Settings that can't be read are logged, and nothing changes."""
        if not self._asked.is_set():
            return None
        self._asked.clear()
        try:
            loaded = self._load()
        except SettingsError as error:
            LOG.error("settings not reloaded: %s", error)
            return None
        changed = settings.differences(self._current, loaded)
        waiting = [
            name for name in changed if not any(name == live or name.startswith(f"{live}.") for live in self._live)
        ]
        taken = [name for name in changed if name not in waiting]
        logs.setup(loaded.logging.level, loaded.logging.format)
        LOG.info("settings reloaded: %s", ", ".join(taken) or "nothing that a running process takes over has changed")
        if waiting:
            LOG.warning("changed, but only a restart takes it over: %s", ", ".join(waiting))
        self._current = loaded
        return loaded


def run(
    argv: list[str] | None,
    *,
    name: str,
    description: str,
    examples: str,
    cls: type[S],
    serve: Callable[[S, threading.Event, Reloads[S]], None],
    live: Sequence[str] = (),
) -> int:
    """Parse the command line, load the settings, and call `serve(settings, stop, reloads)` until it returns.

    `stop` is set by SIGTERM and SIGINT; `serve` then finishes what it has accepted. `live`: see Reloads. Returns the
    exit code.
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
        _allow_descriptors()
        reloads = Reloads(loaded, lambda: settings.load(cls, arguments.config), live)
        signal.signal(signal.SIGHUP, lambda _number, _frame: reloads.ask())
        serve(loaded, stop_on_signals(), reloads)
    except SettingsError as error:
        sys.stderr.write(f"error: {logs.one_line(str(error))}\n")
        return 2
    except PollenError as error:
        sys.stderr.write(f"error: {logs.one_line(str(error))}\n")
        return 1
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{missing_package(name, name.removeprefix('pollen-'), error)}\n")
        return 1
    return 0


def _allow_descriptors() -> None:
    """Take all the open files that the system grants: idle connections must not use up a service's 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS), most)
    )


def stop_on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process the default way."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop
