"""SIGHUP for a Mosquitto: read access rules, passwords, certificates and revocations again."""

import os
import signal
import time
from pathlib import Path
from typing import Final

_WAIT_S: Final = 10.0


def send(pid: int) -> None:
    """Send it once the process catches it: Mosquitto accepts connections earlier, and it would be its end.

    Raises OSError: ProcessLookupError when there is no such process, PermissionError when it isn't ours.
    """
    deadline = time.monotonic() + _WAIT_S
    while not _catches(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGHUP)


def _catches(pid: int) -> bool:
    """Whether the process has a handler for SIGHUP, proc(5); True where that can't be told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), -1)
    return bool(caught >> (signal.SIGHUP - 1) & 1)
