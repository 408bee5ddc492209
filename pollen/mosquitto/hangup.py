"""SIGHUP for a Mosquitto: read access rules, passwords, certificates and revocations again."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Final

_WAIT_S: Final = 10.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what is listened on, and how it is dialled here


def send(pid: int, host: str, port: int) -> None:
    """Have the Mosquitto that listens on `host` and `port` read its files, as they are now.

    It is sent once the process catches it: Mosquitto accepts connections earlier, and it would be its end. And not
    while it reads: Mosquitto 2.0 forgets a signal that comes in a reload, in which it may have read the older files.
    Raises OSError: ProcessLookupError when there is no such process, PermissionError when it isn't ours.
    """
    os.kill(pid, 0)
    deadline = time.monotonic() + _WAIT_S
    while not _catches(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    # The first answer may come just before a reload in the same turn of its loop, the second only after that.
    for _ in range(2):
        _wait_for_an_answer(host, port)
    os.kill(pid, signal.SIGHUP)


def _catches(pid: int) -> bool:
    """Whether the process has a handler for SIGHUP, proc(5); True where that can't be told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), -1)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


def _wait_for_an_answer(host: str, port: int) -> None:
    with (
        contextlib.suppress(OSError),
        socket.create_connection((_ANY.get(host, host), port), timeout=_WAIT_S) as connection,
    ):
        connection.sendall(bytes(16))  # neither TLS nor MQTT: it hangs up
        connection.recv(1)
