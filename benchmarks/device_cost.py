"""What a device costs: memory, share of a core and bytes sent a day at 1 and 50 readings a second, training included.

    python -m benchmarks.device_cost
    python -m benchmarks.device_cost --hertz 1 10 50 --seconds 300

Real pollen-edge processes, one for each speed, with a synthetic sensor of 8 channels, a real broker, gateway and
server; each trains an MLP of 20,000 parameters after every 64 readings, one pass over 2,000 examples. It lived faster
before, until it had those, and was started again from its state. Beside each runs a Python process that only
sleeps and reads the same sensor as often. All run at the same time, with default settings. CPU is user and system time
by the wall clock, of one core of this machine. What is written to the disk a day, benchmarks.device_writes measures.
"""

import argparse
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.roles import PROJECT, free_port, logs, process
from pollen.mosquitto import Account, Mosquitto, ensure

CHANNELS: Final = 8
NEW_SAMPLES: Final = 64  # the default, after which a device trains
DAY_S: Final = 86400.0
START_S: Final = 60.0
FAST_HZ: Final = 200.0
EXAMPLES: Final = 2000  # the replay buffer's size by default

BUILD: Final = f"""
import sys, keras
from pollen.compiler import compile
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((16, {CHANNELS})), keras.layers.Flatten(),
    keras.layers.Dense(128, activation="relu"), keras.layers.Dense(16, activation="relu"),
    keras.layers.Dense({CHANNELS})])
compile(model, loss="mse", optimizer="adam", batch=16, name="cost").write(sys.argv[1])
"""
BARE: Final = f"""
import sys, time
from edge_client.sensors.synthetic import SyntheticSensor
sensor, period, due = SyntheticSensor({{"channels": {CHANNELS}}}), float(sys.argv[1]), time.monotonic()
while True:
    due += period
    time.sleep(max(0.0, due - time.monotonic()))
    sensor.read()
"""


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment: seconds of the wall clock and of the CPU, bytes resident, and the agent's own status."""

    at: float
    cpu_s: float
    resident: int
    status: dict[str, Any]


def look(child: subprocess.Popen[str], settings: Path | None = None) -> Look:
    """The process now; `settings`: the file of an agent."""
    status = {}
    if settings is not None:
        command = [sys.executable, "-m", "edge_client.command", "status", "--config", str(settings), "--json"]
        asked = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        if asked.returncode:
            raise SystemExit(f"error: the device gives no status\n{asked.stderr}\n{logs(settings.parent)}")
        status = json.loads(asked.stdout)
    watched = psutil.Process(child.pid)
    used = watched.cpu_times()
    return Look(time.monotonic(), used.user + used.system, watched.memory_info().rss, status)


def write_settings(folder: Path, bundle: Path, broker_port: int, password: str, rates: list[float]) -> None:
    """server.toml, gateway.toml, and pi-<rate>.toml for each rate in Hz, and pi-<rate>-fast.toml on the same state."""
    port = free_port()
    access = f'[broker]\nport = {broker_port}\npassword = "{password}"\n'
    (folder / "server.toml").write_text(
        f'fleet = "cost"\nbundle = "{bundle}"\nstate_dir = "state"\n[listen]\nport = {port}\n'
    )
    (folder / "gateway.toml").write_text(f'fleet = "cost"\n{access}username = "gateway-1"\n[server]\nport = {port}\n')
    for rate in rates:
        name = f"pi-{rate:g}"
        for file, period in ((name, 1 / rate), (f"{name}-fast", 1 / FAST_HZ)):
            (folder / f"{file}.toml").write_text(
                f'device = "{name}"\nfleet = "cost"\nmodel = "cost"\nstate_dir = "{name}"\n{access}'
                f'username = "{name}"\n[sensor]\nkind = "synthetic"\nperiod_s = {period}\n'
                f"options = {{channels = {CHANNELS}}}\n"
                # Whatever heat this machine has.
                "[policy]\nmax_temperature_celsius = 0\nwhile_throttled = true\n"
            )


def fill(settings: Path) -> None:
    """Let a device live fast until its replay buffer is full and it has a model."""
    with process(settings.parent, settings.stem, "-m", "edge_client.command", "--config", str(settings)) as child:
        wait_for(
            child, settings, 2 * START_S,
            lambda status: status["learner"]["examples"] >= EXAMPLES and status["last_merge"] is not None,
        )  # fmt: skip


def wait_for(
    child: subprocess.Popen[str], settings: Path, seconds: float, condition: Callable[[dict[str, Any]], bool]
) -> None:
    """Return when the device's status is as wanted."""
    deadline = time.monotonic() + seconds
    while True:
        if child.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"error: {settings.stem} learns nothing\n{logs(settings.parent)}")
        with contextlib.suppress(SystemExit):  # it may not have got so far as to answer
            if condition(look(child, settings).status):
                return
        time.sleep(2.0)


def run(folder: Path, rates: list[float], seconds: float) -> dict[float, tuple[Look, Look, Look, Look]]:
    """For each rate the device before and after `seconds`, and the bare loop."""
    bundle, password = folder / "cost.bundle", secrets.token_urlsafe(16)
    subprocess.run([sys.executable, "-c", BUILD, bundle], cwd=PROJECT, check=True, capture_output=True)
    accounts = [Account(f"pi-{rate:g}", password, "device") for rate in rates]
    accounts.append(Account("gateway-1", password, "gateway"))
    binary = ensure(PROJECT / ".cache" / "pollen", lambda text: print(text, file=sys.stderr))
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(binary, folder / "broker", fleet="cost", accounts=accounts))
        write_settings(folder, bundle, broker.port, password, rates)
        for role, module in (("server", "server"), ("gateway", "gateway")):
            stack.enter_context(process(folder, role, "-m", f"{module}.command", "--config", f"{folder}/{role}.toml"))
        settings = {rate: folder / f"pi-{rate:g}.toml" for rate in rates}
        for rate in rates:
            print(f"\rfilling the buffer of the device at {rate:g} Hz ", end="", file=sys.stderr, flush=True)
            fill(settings[rate].with_stem(f"pi-{rate:g}-fast"))
        devices = {
            rate: stack.enter_context(process(folder, file.stem, "-m", "edge_client.command", "--config", str(file)))
            for rate, file in settings.items()
        }
        bare = {
            rate: stack.enter_context(process(folder, f"bare-{rate:g}", "-c", BARE, str(1 / rate))) for rate in rates
        }
        for rate in rates:
            print(f"\rwaiting for an update of the device at {rate:g} Hz ", end="", file=sys.stderr, flush=True)
            updated = START_S + 3 * NEW_SAMPLES / rate
            wait_for(devices[rate], settings[rate], updated, lambda status: status["last_merge"] is not None)
        before = {rate: (look(devices[rate], settings[rate]), look(bare[rate])) for rate in rates}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            print(
                f"\rmeasuring for another {end - time.monotonic():4.0f} s       ", end="", file=sys.stderr, flush=True
            )
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        after = {rate: (look(devices[rate], settings[rate]), look(bare[rate])) for rate in rates}
        print("\r\033[K", end="", file=sys.stderr, flush=True)
        return {rate: (before[rate][0], after[rate][0], before[rate][1], after[rate][1]) for rate in rates}


def share(before: Look, after: Look) -> float:
    """CPU seconds a second."""
    return (after.cpu_s - before.cpu_s) / (after.at - before.at)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hertz", type=float, nargs="+", default=[1.0, 50.0])
    # Three trainings of a device at 1 Hz, which take place every 64 s and a little.
    parser.add_argument("--seconds", type=float, default=220.0, help="a little more than a multiple of 64 / hertz")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), sorted(arguments.hertz), arguments.seconds)
    print(
        f"{arguments.seconds:g} s, {CHANNELS} channels, MLP of about 20,000 parameters, trained every {NEW_SAMPLES}"
        " readings; bare: a loop that only reads the sensor"
    )
    print("      Hz | resident MiB   bare  ratio | CPU of a core   bare  ratio | trainings  ms each | sent a day")
    for rate, (begin, end, bare_begin, bare_end) in found.items():
        resident, bare_resident = end.resident / 2**20, bare_end.resident / 2**20
        cpu, bare_cpu = share(begin, end), share(bare_begin, bare_end)
        trainings = end.status["training"]["updates"] - begin.status["training"]["updates"]
        busy = end.status["training"]["seconds_total"] - begin.status["training"]["seconds_total"]
        sent = end.status["connection"]["sent_bytes"] - begin.status["connection"]["sent_bytes"]
        a_day = sent / (end.at - begin.at) * DAY_S / 1e6
        print(
            f"{rate:8g} |{resident:13.1f} {bare_resident:6.1f} {resident / bare_resident:6.2f} |"
            f"{100 * cpu:12.2f} % {100 * bare_cpu:5.2f}% {cpu / max(bare_cpu, 1e-9):5.1f} |{trainings:10}"
            f" {1000 * busy / max(trainings, 1):8.0f} |{a_day:8.1f} MB"
        )


if __name__ == "__main__":
    main()
