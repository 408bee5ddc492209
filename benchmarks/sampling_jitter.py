"""How late a device's sensor is read while the device trains, beside a bare Python loop that only sleeps, in one run.

    python -m benchmarks.sampling_jitter
    python -m benchmarks.sampling_jitter --hertz 50 --seconds 60 --hidden 128 2048 --busy 2

The device is a real pollen-edge with a real broker, gateway and server; its sensor, from an entry point as a user's
would be, writes down when it is read. Lateness is measured against the grid of periods through the earliest reading, so
one of a period or more counts as a missed read. The bare loop runs at the same time: where it is nearly a period late
itself, the machine has no time left, and the figures say nothing about the device. `--busy` processes that compute at
the usual niceness run beside them in the last rows.
"""

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.roles import PROJECT, free_port, logs, process
from pollen.mosquitto import Account, Mosquitto, ensure

WINDOW, CHANNELS = 16, 8
START_S: Final = 60.0
SETTLE_S: Final = 2.0

SENSOR: Final = f"""
import array, time
import numpy as np
from edge_client.sensors import Channel, Reading

class Stamping:
    channels = tuple(Channel(f"c{{number}}", "") for number in range({CHANNELS}))

    def __init__(self, options):
        self.file, self.times = options["file"], array.array("d")

    def read(self):
        self.times.append(time.monotonic())
        angle = len(self.times) / np.arange(3, {CHANNELS + 3})
        return Reading(np.sin(angle, dtype=np.float32)[None])

    def close(self):
        with open(self.file, "wb") as file:
            self.times.tofile(file)
"""
BARE: Final = """
import array, sys, time
period, file, end = float(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
times, due = array.array("d"), time.monotonic() + period
while due < end:
    time.sleep(max(0.0, due - time.monotonic()))
    times.append(time.monotonic())
    due += period * (1 + max(0, int((time.monotonic() - due) / period)))
with open(file, "wb") as out:
    times.tofile(out)
"""
BUILD: Final = f"""
import sys, keras
from pollen.compiler import compile
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input(({WINDOW}, {CHANNELS})), keras.layers.Flatten(),
    *(keras.layers.Dense(int(sys.argv[2]), activation="relu") for _ in range(2)), keras.layers.Dense({CHANNELS})])
compile(model, loss="mse", optimizer="adam", batch=16, name="jitter").write(sys.argv[1])
print(model.count_params())
"""

Times = npt.NDArray[np.float64]


def lateness(times: Times, period: float) -> Times:
    """Seconds [n] by which the times [n] are behind the grid of periods on which the earliest in its period lies.

    Where within a period that is, is told by the longest stretch of it in which nothing was ever read.
    """
    places = np.sort(times % period)
    gaps = np.diff(places, append=places[0] + period)
    return np.asarray((times - places[(np.argmax(gaps) + 1) % len(places)]) % period)


def measured(file: Path, begin: float, end: float) -> Times:
    """The times in `file` from `begin` to `end`."""
    times = np.fromfile(file, np.float64)
    return times[(times >= begin) & (times < end)]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """`count` processes that compute all the time."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def run(folder: Path, bundle: Path, *, trains: bool, neighbours: int, options: argparse.Namespace) -> dict[str, Any]:
    """One device for a while: lateness of its reads and of the bare loop's, and the device's share of one core."""
    folder.mkdir()
    password, port, period = secrets.token_urlsafe(16), free_port(), 1 / options.hertz
    accounts = [Account("pi-1", password, "device"), Account("gateway-1", password, "gateway")]
    with contextlib.ExitStack() as stack:
        binary = ensure(PROJECT / ".cache" / "pollen", print)
        broker = stack.enter_context(Mosquitto(binary, folder / "broker", fleet="jitter", accounts=accounts))
        access = f'[broker]\nport = {broker.port}\npassword = "{password}"\n'
        (folder / "server.toml").write_text(
            f'fleet = "jitter"\nbundle = "{bundle}"\nstate_dir = "state"\n[listen]\nport = {port}\n'
            "[task.config]\nepochs = 1000\nmax_steps = 100000\n"
        )
        (folder / "gateway.toml").write_text(
            f'fleet = "jitter"\n{access}username = "gateway-1"\n[server]\nport = {port}\n'
        )
        (folder / "edge.toml").write_text(
            f'device = "pi-1"\nfleet = "jitter"\nmodel = "jitter"\nstate_dir = "pi-1"\n{access}username = "pi-1"\n'
            f'[sensor]\nkind = "stamping"\nperiod_s = {period}\noptions = {{file = "{folder}/reads"}}\n'
            f"[training]\nnew_samples = {128 if trains else 10**9}\nslice_ms = {options.slice_ms}\n"
            "[policy]\nmax_temperature_celsius = 0\nwhile_throttled = true\n"
        )
        stack.enter_context(process(folder, "server", "-m", "server.command", "--config", f"{folder}/server.toml"))
        stack.enter_context(process(folder, "gateway", "-m", "gateway.command", "--config", f"{folder}/gateway.toml"))
        edge = stack.enter_context(
            process(folder, "edge", "-m", "edge_client.command", "--config", f"{folder}/edge.toml")
        )
        # From then on the device either trains or has seen as many samples without.
        time.sleep(SETTLE_S + 128 * period)
        wait_until_it_computes(edge, folder, trains=trains)
        stack.enter_context(busy(neighbours))
        time.sleep(SETTLE_S)
        begin, cpu = time.monotonic(), psutil.Process(edge.pid).cpu_times()
        bare = [sys.executable, "-c", BARE, str(period), str(folder / "bare"), str(options.seconds)]
        subprocess.run(bare, check=True)
        end, after = time.monotonic(), psutil.Process(edge.pid).cpu_times()
    used = (after.user + after.system - cpu.user - cpu.system) / (end - begin)
    reads = measured(folder / "reads", begin, end)
    return {
        "device": lateness(reads, period),
        "bare": lateness(measured(folder / "bare", begin, end), period),
        "missed": max(0, round((end - begin) / period) - len(reads)),
        "cpu": used,
    }


def wait_until_it_computes(edge: subprocess.Popen[str], folder: Path, *, trains: bool) -> None:
    """Return once the device uses a good part of a core, if it is to train."""
    deadline = time.monotonic() + START_S
    watched = psutil.Process(edge.pid)
    while trains and watched.cpu_percent(1.0) < 30.0:
        if time.monotonic() > deadline or edge.poll() is not None:
            raise SystemExit(f"error: the device does not train\n{logs(folder)}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hertz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 2048], help="units of the models' two layers")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="computing processes in the last rows")
    parser.add_argument("--slice-ms", type=float, default=20.0)
    options = parser.parse_args()
    period_ms = 1000 / options.hertz
    print(f"lateness of reads in ms at {options.hertz:g} Hz, a period of {period_ms:g} ms; ratio: largest to period")
    print("parameters  training  busy |   p50    p99     max  ratio |  bare p99     max | missed  CPU")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = folder / "stamping-1.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: stamping\nVersion: 1\n")
        (plugin / "entry_points.txt").write_text("[pollen.sensors]\nstamping = stamping:Stamping\n")
        (folder / "stamping.py").write_text(SENSOR)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        for hidden in options.hidden:
            bundle = folder / f"{hidden}.bundle"
            built = subprocess.run(
                [sys.executable, "-c", BUILD, bundle, str(hidden)], cwd=PROJECT, check=True, capture_output=True
            )
            for trains, neighbours in ((False, 0), (True, 0), (True, options.busy)):
                place = folder / f"{hidden}-{trains}-{neighbours}"
                found = run(place, bundle, trains=trains, neighbours=neighbours, options=options)
                device, bare = (1000 * found[who] for who in ("device", "bare"))
                print(
                    f"{int(built.stdout.split()[-1]):10}  {'yes' if trains else 'no':>8}  {neighbours:4} |"
                    f"{np.median(device):6.2f} {np.percentile(device, 99):6.2f} {device.max():7.2f}"
                    f"  {device.max() / period_ms:5.2f} |{np.percentile(bare, 99):10.2f} {bare.max():7.2f} |"
                    f"{found['missed']:7}  {100 * found['cpu']:.0f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
