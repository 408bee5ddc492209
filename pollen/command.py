"""`pollen`, the operator's tool: finds its sub-commands among the installed packages and runs one."""

import sys
from importlib.metadata import EntryPoint, entry_points

from pollen import __version__, logs
from pollen.errors import PollenError, SettingsError, missing_package

GROUP = "pollen.commands"

# Here and not beside the commands, as importing those costs seconds. A command of another package shows its origin.
SUMMARIES = {
    "broker-config": "write Mosquitto's configuration for a fleet: TLS, access rules, limits",
    "ca": "make the fleet's certificates",
    "compile": "turn a Keras model into a bundle that devices train",
    "devices": "list the devices of a fleet and how they are doing",
    "demo": "run a whole fleet on this machine: broker, gateway, server and devices",
    "export": "write trained weights back into a Keras model",
    "inference": "make a small graph that only predicts, in float32 or quantised",
    "model": "list, export and roll back the versions of a server's model",
    "plot": "draw a run's history as PNG files",
    "revoke": "lock a device out, without restarting the broker",
    "sign-key": "make the keys of signed models",
    "tail": "show a fleet's messages as they pass, decoded",
}

# What brings the packages that a command needs beyond the project's own.
EXTRAS = {
    "ca": "authority",
    "compile": "compiler",
    "export": "compiler",
    "inference": "compiler",
    "model": "server",
    "plot": "server",
    "revoke": "authority",
    "sign-key": "signing",
    "tail": "gateway",
}


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
        print(f"error: {logs.one_line(str(error))}", file=sys.stderr)
        return 2
    except PollenError as error:
        print(f"error: {logs.one_line(str(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(missing_package(f"pollen {words[0]}", EXTRAS.get(words[0], "demo"), error), file=sys.stderr)
        return 1
    return code


def _summary(command: EntryPoint) -> str:
    return SUMMARIES.get(command.name, f"({command.value})")


def _usage(commands: dict[str, EntryPoint]) -> str:
    width = max(map(len, commands), default=0)
    return "\n".join(
        [
            "usage: pollen COMMAND …",
            "",
            "Federated online learning for fleets of small devices. Commands:",
            *(f"  pollen {name:<{width}}  {_summary(commands[name])}" for name in sorted(commands)),
            "",
            "`pollen COMMAND --help` explains each, with examples. The services are pollen-edge, pollen-gateway",
            "and pollen-server.",
        ]
    )
