"""Roles as real processes for the benchmarks: free ports, logs, a clean end."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).parents[1]


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(folder: Path, name: str, *arguments: str, python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """`python arguments…` with its log in `folder` and pipes to its input and output; SIGTERM at the end."""
    with (folder / f"{name}.log").open("w") as log:
        child = subprocess.Popen(
            [python, *arguments], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


def pipes(child: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """What `child` reads and what it writes."""
    if child.stdin is None or child.stdout is None:
        raise SystemExit("error: a child process has no pipes")
    return child.stdin, child.stdout


def logs(folder: Path) -> str:
    """The end of every log in `folder`, for an error message."""
    return "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in sorted(folder.glob("*.log")))
