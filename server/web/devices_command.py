"""`pollen devices`: the devices of a fleet and how they are doing, asked of the server's HTTP API."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pollen.errors import PollenError, SettingsError
from pollen.logs import one_line
from server.web import devices_table
from server.web.api_client import ApiClient

SERVER: Final = "http://127.0.0.1:7080"
VARIABLE: Final = "POLLEN_SERVER_URL"
SLOW_S: Final = 2.0

EXAMPLES: Final = """examples:
  pollen devices                                   # all of them, by name
  pollen devices --online --sort staleness         # who lags behind
  pollen devices --watch                           # again every two seconds, in place
  pollen devices pi-1 pi-2 --json | jq .error
  pollen devices --server https://fleet.example:7080 --ca ca.pem

The server needs [http] with a port in server.toml. POLLEN_SERVER_URL may say where it is. VERSION
is what a device's last update was trained from, STALENESS its merges behind then, BEHIND the
versions merged since. With --json each device is a line; fields are those of /api/devices.
"""


def main(argv: list[str]) -> int:
    """Run `pollen devices`; returns 0, or 1 or 2 with one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        client = ApiClient(options.server, options.ca)
        if options.watch is None:
            return _show(client, options)
        _watch(client, options)
    except PollenError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        pass  # how --watch ends
    except BrokenPipeError:  # as in `pollen devices | head`; the interpreter would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen devices",
        description="List the devices of a fleet and how they are doing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these devices only")
    parser.add_argument("--server", default=os.environ.get(VARIABLE) or SERVER, metavar="URL", help=f"default {SERVER}")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authority of the server's certificate, for https")
    parser.add_argument("--online", action="store_true", help="those that are online only")
    parser.add_argument("--sort", choices=devices_table.SORTS, default="name", help="default: name")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each device, with all fields")
    parser.add_argument(
        "--watch", nargs="?", type=_seconds, const=2.0, metavar="SECONDS", help="again and again, every 2 s by default"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.5 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} must be seconds, from 0.5 to 86400")
    return seconds


def _show(client: ApiClient, options: argparse.Namespace) -> int:
    fleet, rows, unknown = _read(client, options)
    sys.stdout.write("".join(f"{line}\n" for line in _lines(fleet, rows, options)))
    sys.stdout.flush()
    for name in unknown:
        sys.stderr.write(f"error: {one_line(name)}: this server knows no such device\n")
    return 1 if unknown else 0


def _watch(client: ApiClient, options: argparse.Namespace) -> None:
    """Show it again and again; a server that is away is waited for, once it has answered."""
    in_place = sys.stdout.isatty() and not options.json
    fleet, rows, _ = _read(client, options)
    problem = ""
    while True:
        lines = _lines(fleet, rows, options)
        if problem:
            lines = [f"{problem}; what follows is old", *lines]
        if in_place:
            size = shutil.get_terminal_size()
            shown = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
            hidden = len(lines) - len(shown)
            if hidden > 0:
                shown[-1] = f"… and {hidden + 1} more; --sort and --online choose"
            sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
        elif not problem:
            sys.stdout.write("".join(f"{line}\n" for line in lines) + ("" if options.json else "\n"))
        sys.stdout.flush()
        time.sleep(options.watch)
        try:
            (fleet, rows, _), problem = _read(client, options), ""
        except PollenError as error:
            problem = one_line(str(error))
            if not in_place:
                sys.stderr.write(f"error: {problem}; trying again\n")


def _read(client: ApiClient, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The fleet, the rows that were asked for, and the names among these that are unknown."""
    fleet = client.fleet()
    if options.names:
        found = {
            name: next((row for row in client.devices(name) if row["name"] == name), None) for name in options.names
        }
        rows = [row for row in found.values() if row is not None]
        unknown = [name for name, row in found.items() if row is None]
    else:
        rows, unknown = list(_announced(client.devices(), fleet["devices"]["known"])), []
    return fleet, [row for row in rows if row["online"] or not options.online], unknown


def _announced(rows: Iterator[dict[str, Any]], known: int) -> Iterator[dict[str, Any]]:
    """`rows`; a person who waits for them is told so."""
    begun, told = time.monotonic(), not sys.stderr.isatty()
    for row in rows:
        if not told and time.monotonic() - begun > SLOW_S:
            told = True
            sys.stderr.write(f"reading {known} devices …\n")
        yield row


def _lines(fleet: dict[str, Any], rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    chosen = devices_table.ordered(rows, options.sort)
    if options.json:
        return [json.dumps(row) for row in chosen]
    known = fleet["devices"]
    head = f"fleet {fleet['fleet']}: {known['online']} of {known['known']} devices online, {known['blocked']} blocked"
    models = ", ".join(f"{model['name']} at version {model['version']}" for model in fleet["models"])
    lines = [devices_table.plain(f"{head}; {models}", 500), ""]
    if not chosen:
        return [*lines, "no device" + (" is online" if options.online else " has been seen yet")]
    return lines + devices_table.table(chosen, fleet["now"])
