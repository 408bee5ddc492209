"""`pollen-server` as it is installed: where Flower is missing it says so in one line, without a traceback."""

import sys

from pollen.errors import missing_package


def main() -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit code."""
    try:
        from server import command  # noqa: PLC0415 - it imports Flower
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{missing_package('pollen-server', 'server', error)}\n")
        return 1
    return command.main()
