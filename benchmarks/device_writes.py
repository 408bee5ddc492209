"""Bytes that a device writes to its card in a day, at 1 Hz and 8 channels, beside the naive way to keep samples.

    python -m benchmarks.device_writes
    python -m benchmarks.device_writes --hours 6 --speed 60

A real pollen-edge with its default settings, on a real broker, gateway and server, learns the demo's forecast model
from a recording and sends an update whenever it has trained. Its clock runs `--speed` times as fast. Bytes are those
of /proc/<pid>/io, write_bytes: pages handed to the disk, without the file system's own journal. Each commit is
flushed, so they are the same at any speed. The naive way is a row and a transaction a sample, in SQLite as it comes
(synchronous FULL). The first hour is left out: the reservoir fills then.
"""

import argparse
import contextlib
import json
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.roles import PROJECT, free_port, logs, process
from edge_client.clock import SystemClock
from pollen.bundle import Bundle
from pollen.mosquitto import Account, Mosquitto, ensure

GOAL_MB = 50
CHANNELS, WINDOW = 8, 16
DAY_S = 86400
NAIVE_ROWS = 3600

COMPILE = """
import sys, keras
from pollen.compiler import compile
from pollen.demo import models
keras.utils.set_random_seed(1)
model = models.build("forecast", (16, 8), 8)
compile(model, loss="mse", optimizer="adam", learning_rate=3e-4, batch=16, name="writes").write(sys.argv[1])
"""


class FastClock(SystemClock):
    """The machine's clock, `speed` times as fast."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def monotonic(self) -> float:
        """`time.monotonic`, sped up."""
        return super().monotonic() * self._speed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """`event.wait`, sped up."""
        return super().wait(event, seconds / self._speed)


def run_device(settings_file: Path, speed: float) -> None:
    """The agent until SIGTERM, on a fast clock."""
    from edge_client.agent import Agent  # noqa: PLC0415 - not in the process that measures
    from edge_client.settings import EdgeSettings  # noqa: PLC0415
    from pollen import settings  # noqa: PLC0415

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Agent(settings.load(EdgeSettings, settings_file, {}), FastClock(speed)).run(stop)


def written(pid: int) -> int:
    """Bytes a process has caused to be written to disk."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def merges(history: Path) -> int:
    """Updates merged so far."""
    if not history.exists():
        return 0
    return sum(json.loads(line)["event"] == "merge" for line in history.read_text().splitlines())


def device_bytes(folder: Path, bundle: Path, hours: float, speed: float, extra: str) -> tuple[float, float]:
    """MB and updates a day of a pollen-edge with these settings, over `hours` after the first."""
    folder.mkdir()
    password = secrets.token_urlsafe(16)
    accounts = [Account("pi-1", password, "device"), Account("gateway-1", password, "gateway")]
    port = free_port()
    walk = np.cumsum(np.random.default_rng(0).normal(size=(20_000, CHANNELS)), axis=0).astype(np.float32)
    np.savez(folder / "walk.npz", X=walk)
    with contextlib.ExitStack() as stack:
        binary = ensure(PROJECT / ".cache" / "pollen", print)
        broker = stack.enter_context(Mosquitto(binary, folder / "broker", fleet="writes", accounts=accounts))
        access = f'[broker]\nport = {broker.port}\npassword = "{password}"\n'
        (folder / "server.toml").write_text(
            f'fleet = "writes"\nbundle = "{bundle}"\nstate_dir = "state"\n[listen]\nport = {port}\n'
        )
        (folder / "gateway.toml").write_text(
            f'fleet = "writes"\n{access}username = "gateway-1"\n[server]\nport = {port}\n'
        )
        (folder / "edge.toml").write_text(
            f'device = "pi-1"\nfleet = "writes"\nmodel = "writes"\nstate_dir = "pi-1"\n{access}username = "pi-1"\n'
            f'[sensor]\nkind = "replay"\nperiod_s = 1.0\noptions = {{file = "{folder}/walk.npz", loop = true}}\n{extra}'
        )
        stack.enter_context(process(folder, "server", "-m", "server.command", "--config", f"{folder}/server.toml"))
        stack.enter_context(process(folder, "gateway", "-m", "gateway.command", "--config", f"{folder}/gateway.toml"))
        device = ("-m", "benchmarks.device_writes", "--device", f"{folder}/edge.toml", "--speed", str(speed))
        edge = stack.enter_context(process(folder, "edge", *device))
        history = folder / "state" / "history.jsonl"
        deadline = time.monotonic() + 120
        while not merges(history):
            if time.monotonic() > deadline or edge.poll() is not None:
                raise SystemExit(f"error: the device sent no update\n{logs(folder)}")
            time.sleep(0.2)
        wait("first hour, left out", 3600 / speed)
        before, updates, started = written(edge.pid), merges(history), time.monotonic()
        wait("measuring", hours * 3600 / speed)
        if edge.poll() is not None:
            raise SystemExit(f"error: the device ended\n{logs(folder)}")
        days = (time.monotonic() - started) * speed / DAY_S
        return (written(edge.pid) - before) / 1e6 / days, (merges(history) - updates) / days


def wait(what: str, seconds: float) -> None:
    """Let `seconds` pass, and say so."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        print(f"\r  {what}: {left:4.0f} s left ", end="", file=sys.stderr)
        time.sleep(min(left, 1.0))
    print("\r" + 50 * " " + "\r", end="", file=sys.stderr)


def naive_bytes(folder: Path) -> float:
    """MB a day of one row and one transaction a sample."""
    before = written_by_self()
    database = sqlite3.connect(folder / "naive.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    columns = ", ".join(f"c{channel} REAL" for channel in range(CHANNELS))
    database.execute(f"CREATE TABLE sample (id INTEGER PRIMARY KEY, time REAL, {columns})")
    places = ", ".join("?" * (CHANNELS + 1))
    names = ", ".join(f"c{channel}" for channel in range(CHANNELS))
    for row, values in enumerate(np.random.default_rng(0).normal(size=(NAIVE_ROWS, CHANNELS)).tolist()):
        database.execute(f"INSERT INTO sample (time, {names}) VALUES ({places})", (float(row), *values))  # noqa: S608
    database.close()
    return (written_by_self() - before) / 1e6 * DAY_S / NAIVE_ROWS


def written_by_self() -> int:
    """Bytes this process has caused to be written to disk."""
    return written(int(Path("/proc/self").resolve().name))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0, help="measured, after the first")
    parser.add_argument("--speed", type=float, default=60.0)
    parser.add_argument("--device", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device:
        run_device(arguments.device, arguments.speed)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, bundle = Path(name), Path(name) / "writes.bundle"
        subprocess.run([sys.executable, "-c", COMPILE, bundle], cwd=PROJECT, check=True, capture_output=True)
        size = Bundle.read(bundle).manifest.parameters
        runs = {}
        for title, extra in {"whole": "", "without": "[storage]\nkeep = false\n"}.items():
            runs[title] = device_bytes(folder / title, bundle, arguments.hours, arguments.speed, extra)
        naive = naive_bytes(folder)
    (whole, updates), (without, _) = runs["whole"], runs["without"]
    rows = [
        (f"pollen-edge, {updates:.0f} updates of {size} parameters a day", whole),
        ("  of it updates and snapshots", without),
        ("  of it the memory of the stream", whole - without),
        ("naive: a transaction a sample, nothing else", naive),
    ]
    print(f"written to the card in a day, 1 Hz x {CHANNELS} channels, {arguments.hours:g} h at {arguments.speed:g} x")
    for what, amount in rows:
        print(f"  {what:<58} {amount:8.1f} MB   ratio to the naive way {amount / naive:5.2f}")
    print(f"  goal {GOAL_MB} MB a day: {'met' if whole <= GOAL_MB else 'missed'}")


if __name__ == "__main__":
    main()
