"""`pollen`, the operator's tool: finds its sub-commands among the installed packages and runs one."""

import sys
from importlib.metadata import EntryPoint, entry_points

from pollen import __version__
from pollen.errors import PollenError, SettingsError

GROUP = "pollen.commands"


def main(argv: list[str] | None = None) -> int:
    """Run `pollen COMMAND …`; returns the exit code (0 done, 1 failed, 2 wrong usage or settings)."""
    words = sys.argv[1:] if argv is None else argv
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not words or words[0] in ("-h", "--help"):
        print(_usage(commands))
        return 0 if words else 2
    if words[0] == "--version":
        print(f"pollen {__version__}")
        return 0
    if words[0] not in commands:
        print(
            f"error: pollen has no command {words[0]!r}; known: {', '.join(sorted(commands))}",
            file=sys.stderr,
        )
        return 2
    try:
        code: int = commands[words[0]].load()(words[1:])
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PollenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"error: pollen {words[0]} needs package {error.name!r}; install it: pip install 'pollen-fl[demo]'",
            file=sys.stderr,
        )
        return 1
    return code


def _usage(commands: dict[str, EntryPoint]) -> str:
    return "\n".join(
        [
            "usage: pollen COMMAND …",
            "",
            "Federated online learning for fleets of small devices. Commands:",
            *(f"  pollen {name}" for name in sorted(commands)),
            "",
            "`pollen COMMAND --help` explains each, with examples. The services are pollen-edge, pollen-gateway",
            "and pollen-server.",
        ]
    )
