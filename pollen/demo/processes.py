"""The demo's processes: started with a log file each, watched, measured, and never left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pollen.errors import PollenError

Role = Literal["broker", "server", "gateway", "device", "tool"]


def entry(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module.main(arguments)` in this Python, installed or not."""
    return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))", *arguments]


@dataclass(slots=True)
class Child:
    """One process. `stopped` says that the demo asked it to end, so that ending is no accident."""

    name: str
    role: Role
    process: subprocess.Popen[bytes]
    log: Path
    stopped: bool = False
    rss_bytes: int = 0
    peak_rss_bytes: int = 0

    def measure(self) -> None:
        """Read the resident set and its high-water mark from /proc, proc(5); nothing when it has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmHWM" in fields:
            self.rss_bytes = int(fields["VmRSS"].split()[0]) * 1024
            self.peak_rss_bytes = int(fields["VmHWM"].split()[0]) * 1024

    def last_line(self) -> str:
        """The last line of its log, for an error message."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it wrote nothing"


class Processes:
    """All children of one demo. Use as a context manager: on the way out whatever still runs is killed."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        read, write = os.pipe()
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).with_name("guard.py"))],
            stdin=read,
            start_new_session=True,  # Ctrl-C at the terminal is for the demo alone
        )
        os.close(read)
        self._guarded = os.fdopen(write, "wb", buffering=0)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.stopped = True
                child.process.kill()
        for child in self.children:
            child.process.wait()
        self._guarded.close()
        self._guard.wait()

    def start(self, name: str, role: Role, command: Sequence[str], log: Path) -> Child:
        """Start `command`; stdout and stderr go to `log`. Raises PollenError when it can't be started."""
        with log.open("ab") as file:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            except OSError as error:
                raise PollenError(f"{name}: {command[0]} can't be started: {error}") from error
        return self.adopt(name, role, process, log)

    def adopt(self, name: str, role: Role, process: subprocess.Popen[bytes], log: Path) -> Child:
        """Watch a process that another part of Pollen started."""
        child = Child(name, role, process, log)
        self.children.append(child)
        self._guarded.write(f"{process.pid}\n".encode())
        return child

    def accidents(self) -> list[Child]:
        """The children that ended though nobody asked them to, or ended badly when asked."""
        return [
            child
            for child in self.children
            if child.role != "tool"
            and child.process.poll() is not None
            and (not child.stopped or child.process.returncode != 0)
        ]

    def measure(self) -> None:
        """Update every child's memory figures."""
        for child in self.children:
            child.measure()

    def peak_rss(self) -> dict[str, int]:
        """The largest high-water mark of each role, bytes."""
        peaks: dict[str, int] = {}
        for child in self.children:
            if child.role == "tool":
                continue
            peaks[child.role] = max(peaks.get(child.role, 0), child.peak_rss_bytes)
        return peaks


def stop(children: Sequence[Child], timeout_s: float) -> list[Child]:
    """Ask `children` to end with SIGTERM and wait for all; returns those that had to be killed."""
    running = [child for child in children if child.process.poll() is None]
    for child in running:
        child.measure()
        child.stopped = True
        child.process.terminate()
    deadline = time.monotonic() + timeout_s
    late = []
    for child in running:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            late.append(child)
    return late
