"""Memory of a device after 1,000 training steps, beside the bare interpreter and beside Keras, in the same run.

    python -m benchmarks.device_memory
    python -m benchmarks.device_memory --steps 1000 --tflite .venv-tflite/bin/python

The device is a real pollen-edge that replays a recording through a real broker, gateway and server; it trains an MLP
of 20,000 parameters. Keras trains the same model on the same kind of data with `train_on_batch`. Memory is in MiB.
"""

import argparse
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.roles import PROJECT, free_port, logs, process
from pollen.mosquitto import Account, Mosquitto, ensure

GOAL_MIB = 60
WINDOW, CHANNELS, HIDDEN = 16, 8, 128
START_S, TRAIN_S = 60.0, 180.0

BUILD = f"""
import sys, keras
from pollen.compiler import compile
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input(({WINDOW}, {CHANNELS})), keras.layers.Flatten(),
    keras.layers.Dense({HIDDEN}, activation="relu"), keras.layers.Dense(16, activation="relu"),
    keras.layers.Dense({CHANNELS})])
compile(model, loss="mse", optimizer="adam", batch=16, name="memory").write(sys.argv[1])
"""
INTERPRETER = """
import sys, numpy as np
from pollen.bundle import Bundle
from pollen.interpreter import load
bundle = Bundle.read(sys.argv[1]); graph = load(bundle); w = bundle.weights.copy(); m = bundle.manifest
x = np.ones((m.batch, *m.input_shape), "f4"); y = np.ones((m.batch, *m.label_shape), "f4")
for _ in range(int(sys.argv[2])): w -= 0.01 * graph.gradient(w, x, y).gradient
print(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
"""
KERAS = f"""
import sys, numpy as np, keras
model = keras.Sequential([keras.Input(({WINDOW}, {CHANNELS})), keras.layers.Flatten(),
    keras.layers.Dense({HIDDEN}, activation="relu"), keras.layers.Dense(16, activation="relu"),
    keras.layers.Dense({CHANNELS})])
model.compile("adam", "mse")
x = np.ones((16, {WINDOW}, {CHANNELS}), "f4"); y = np.ones((16, {CHANNELS}), "f4")
for _ in range(int(sys.argv[2])): model.train_on_batch(x, y)
print(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
"""


def resident_mib(code: str, bundle: Path, steps: int, python: str) -> float:
    """Resident memory in MiB of a fresh process at the end of `code`."""
    done = subprocess.run(
        [python, "-c", code, str(bundle), str(steps)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {done.stderr[-500:]}")
    return int(done.stdout.split()[-1]) / 1024


def steps_done(history: Path) -> int:
    """Optimizer steps in the updates merged so far."""
    if not history.exists():
        return 0
    events = [json.loads(line) for line in history.read_text().splitlines()]
    return sum(event["steps"] for event in events if event["event"] == "merge")


def device_mib(folder: Path, bundle: Path, steps: int, python: str) -> tuple[float, float]:
    """Resident and peak memory in MiB of a pollen-edge after `steps` training steps, run by `python`."""
    password = secrets.token_urlsafe(16)
    accounts = [Account("pi-1", password, "device"), Account("gateway-1", password, "gateway")]
    port = free_port()
    # The walk makes forecasting neither trivial nor hopeless; its length is a day of minutes.
    walk = np.cumsum(np.random.default_rng(0).normal(size=(1440, CHANNELS)), axis=0).astype(np.float32)
    np.savez(folder / "walk.npz", X=walk)
    binary = ensure(PROJECT / ".cache" / "pollen", print)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(binary, folder / "broker", fleet="memory", accounts=accounts))
        access = f'[broker]\nport = {broker.port}\npassword = "{password}"\n'
        (folder / "server.toml").write_text(
            f'fleet = "memory"\nbundle = "{bundle}"\nstate_dir = "state"\n[listen]\nport = {port}\n'
        )
        (folder / "gateway.toml").write_text(
            f'fleet = "memory"\n{access}username = "gateway-1"\n[server]\nport = {port}\n'
        )
        (folder / "edge.toml").write_text(
            f'device = "pi-1"\nfleet = "memory"\nmodel = "memory"\nstate_dir = "pi-1"\n{access}username = "pi-1"\n'
            f'[sensor]\nkind = "replay"\nperiod_s = 0.01\noptions = {{file = "{folder}/walk.npz", loop = true}}\n'
            "[training]\nnew_samples = 64\nmax_steps = 50\n"
        )
        stack.enter_context(process(folder, "server", "-m", "server.command", "--config", f"{folder}/server.toml"))
        stack.enter_context(process(folder, "gateway", "-m", "gateway.command", "--config", f"{folder}/gateway.toml"))
        edge = stack.enter_context(
            process(folder, "edge", "-m", "edge_client.command", "--config", f"{folder}/edge.toml", python=python)
        )
        deadline = time.monotonic() + START_S + TRAIN_S
        while steps_done(folder / "state" / "history.jsonl") < steps:
            if time.monotonic() > deadline or edge.poll() is not None:
                raise SystemExit(f"error: the device did not make {steps} steps\n{logs(folder)}")
            time.sleep(0.5)
        peak = next(line for line in Path(f"/proc/{edge.pid}/status").read_text().splitlines() if "VmHWM" in line)
        return psutil.Process(edge.pid).memory_info().rss / 2**20, int(peak.split()[1]) / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tflite", help="a Python with pollen-fl[edge-tflite], to measure that interpreter too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "memory.bundle"
        subprocess.run([sys.executable, "-c", BUILD, bundle], cwd=PROJECT, check=True, capture_output=True)
        keras = resident_mib(KERAS, bundle, arguments.steps, sys.executable)
        print(f"resident memory after {arguments.steps} training steps, MLP of about 20,000 parameters, batch 16")
        print(f"  Keras on TensorFlow, train_on_batch       {keras:7.1f} MiB   ratio 1.00")
        pythons = {"ai-edge-litert": sys.executable} | (
            {"tflite-runtime": arguments.tflite} if arguments.tflite else {}
        )
        for runtime, python in pythons.items():
            folder = Path(name) / runtime
            folder.mkdir()
            bare = resident_mib(INTERPRETER, bundle, arguments.steps, python)
            resident, peak = device_mib(folder, bundle, arguments.steps, python)
            print(f"  {runtime}, interpreter and numpy   {bare:7.1f} MiB   ratio {bare / keras:4.2f}")
            verdict = "met" if resident <= GOAL_MIB else "missed"
            print(
                f"  {runtime}, pollen-edge whole       {resident:7.1f} MiB   ratio {resident / keras:4.2f}"
                f"   peak {peak:.1f} MiB   goal {GOAL_MIB} MiB: {verdict}"
            )


if __name__ == "__main__":
    main()
