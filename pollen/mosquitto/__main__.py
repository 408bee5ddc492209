"""`python -m pollen.mosquitto [CACHE]`: make sure Mosquitto 2 is there and print its path."""

import argparse
import sys
from pathlib import Path

from pollen.errors import PollenError
from pollen.mosquitto.installation import ensure


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(argv: list[str] | None = None) -> int:
    """Install Mosquitto where it is missing; its path goes to stdout, everything else to stderr."""
    parser = argparse.ArgumentParser(prog="python -m pollen.mosquitto", description=main.__doc__)
    parser.add_argument(
        "cache", nargs="?", type=Path, default=Path(".cache/pollen"), help="where to unpack it without root"
    )
    try:
        path = ensure(parser.parse_args(argv).cache, _say)
    except PollenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
