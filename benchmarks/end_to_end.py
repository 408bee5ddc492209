"""Updates a second from simulated devices through broker, gateway and server, beside bare MQTT on the same machine.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --devices 100 --kilobytes 100 --seconds 20

Every role is a real process: Mosquitto, pollen-gateway, pollen-server with its state store on disk. Only the devices
are simulated (simulated_devices.py): they answer at once and train nothing. The yardstick in the same run is the same
broker carrying the same payloads from one publisher to one subscriber that throws them away.
"""

import argparse
import contextlib
import json
import secrets
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.roles import PROJECT, free_port, logs, process
from pollen import topics
from pollen.bundle import Bundle, Loss, Manifest, Optimizer, Tensor
from pollen.mosquitto import Account, Mosquitto, ensure

FLEET = "bench"
WARM_UP_S = 5.0
START_S = 30.0
GOAL_PER_S = 500
TENSORS = 6


def bundle_of(kilobytes: int) -> Bundle:
    """A model of `kilobytes` kB of float32 weights in six tensors; nothing here runs its graph."""
    each = kilobytes * 1000 // 4 // TENSORS
    manifest = Manifest(
        model="bench",
        weights=tuple(Tensor(f"t{i}", (each,)) for i in range(TENSORS)),
        state=(),
        frozen=(),
        personal=(),
        input_shape=(1,),
        input_dtype="float32",
        input_below=0,
        output_shape=(1,),
        label_shape=(1,),
        label_dtype="float32",
        batch=1,
        noise=(),
        loss=Loss("mse", False),
        optimizer=Optimizer("sgd", 0.1, {}),
        keras_version="-",
        tensorflow_version="-",
        architecture="",
    )
    return Bundle(manifest, b"-", np.zeros(each * TENSORS, np.float32), *[np.zeros(0, np.float32)] * 2)


def bare_mqtt(broker: Mosquitto, account: Account, kilobytes: int, seconds: float) -> float:
    """Messages a second from one publisher to one subscriber, QoS 1, nothing done with them."""
    topic = topics.device(FLEET, "+", "receipt").replace("+", "nobody")
    payload = secrets.token_bytes(kilobytes * 1000)
    received = 0

    def count(*_: Any) -> None:
        nonlocal received
        received += 1

    def client(name: str) -> mqtt.Client:
        made = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        made.username_pw_set(account.username if name == account.username else "observer", account.password)
        made.max_inflight_messages_set(20)
        made.connect("127.0.0.1", broker.port)
        made.loop_start()
        return made

    subscriber, publisher = client("observer"), client(account.username)
    subscriber.on_message = count
    subscriber.subscribe(topic, 1)
    time.sleep(0.5)
    window = threading.Semaphore(20)
    publisher.on_publish = lambda *_: window.release()
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        window.acquire()
        publisher.publish(topic, payload, qos=1)
    rate = received / (time.monotonic() - started)
    for one in (subscriber, publisher):
        one.disconnect()
        one.loop_stop()
    return rate


def merges(history: Path) -> int:
    """Merged updates in a history file so far."""
    if not history.exists():
        return 0
    with history.open("rb") as file:
        return sum(line.startswith(b'{"time"') and b'"event": "merge"' in line for line in file)


def run(devices: int, kilobytes: int, seconds: float, gateways: int, rule: str) -> dict[str, float]:
    """Measure once; returns rates, latencies in ms, CPU in ms an update and role."""
    binary = ensure(PROJECT / ".cache" / "pollen", print)
    names = [f"sim-{number:04d}" for number in range(devices)]
    password = secrets.token_urlsafe(16)
    accounts = [Account(name, password, "device") for name in names]
    accounts += [Account(f"gateway-{number}", password, "gateway") for number in range(gateways)]
    accounts += [Account("observer", password, "observer")]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(Mosquitto(binary, folder / "broker", fleet=FLEET, accounts=accounts))
        bare = bare_mqtt(broker, accounts[devices], kilobytes, seconds / 3)
        bundle = folder / "bench.bundle"
        bundle_of(kilobytes).write(bundle)
        port = free_port()
        (folder / "server.toml").write_text(
            f'fleet = "{FLEET}"\nbundle = "{bundle}"\nstate_dir = "state"\n'
            f'[listen]\nport = {port}\n[merge]\nrule = "{rule}"\n'
        )
        roles = {"broker": psutil.Process(broker.process.pid)}
        server = stack.enter_context(
            process(folder, "server", "-m", "server.command", "--config", str(folder / "server.toml"))
        )
        roles["server"] = psutil.Process(server.pid)
        for number in range(gateways):
            file = folder / f"gateway-{number}.toml"
            file.write_text(
                f'fleet = "{FLEET}"\nname = "gateway-{number}"\n[broker]\nport = {broker.port}\n'
                f'username = "gateway-{number}"\npassword = "{password}"\n[server]\nport = {port}\n'
            )
            child = stack.enter_context(
                process(folder, f"gateway-{number}", "-m", "gateway.command", "--config", str(file))
            )
            roles[f"gateway-{number}"] = psutil.Process(child.pid)
        settings = {"port": broker.port, "fleet": FLEET, "password": password, "bundle": str(bundle), "devices": names}
        (folder / "devices.json").write_text(json.dumps(settings))
        simulated = stack.enter_context(
            process(folder, "devices", "-m", "benchmarks.simulated_devices", str(folder / "devices.json"))
        )
        roles["devices"] = psutil.Process(simulated.pid)
        return {"bare_per_s": bare} | measure(folder / "state" / "history.jsonl", simulated, roles, seconds)


def measure(
    history: Path, simulated: subprocess.Popen[str], roles: dict[str, psutil.Process], seconds: float
) -> dict[str, float]:
    """Let it warm up, then count merges and CPU seconds over `seconds`."""
    deadline = time.monotonic() + START_S
    while merges(history) == 0:
        if time.monotonic() > deadline:
            raise SystemExit(f"error: nothing was merged within {START_S:.0f} s\n{logs(history.parents[1])}")
        time.sleep(0.2)
    time.sleep(WARM_UP_S)
    before, cpu, started = merges(history), cpu_seconds(roles), time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    used = {role: after - cpu[role] for role, after in cpu_seconds(roles).items()}
    count = merges(history) - before
    if simulated.stdin is None or simulated.stdout is None:
        raise SystemExit("error: the simulated devices have no pipes")
    simulated.stdin.close()
    told = json.loads(simulated.stdout.readline())
    result = {"updates_per_s": count / elapsed, "p50_ms": told["p50_ms"], "p99_ms": told["p99_ms"]}
    result |= {f"{role}_cpu_ms": 1000 * seconds_used / max(1, count) for role, seconds_used in used.items()}
    result |= {
        f"{role}_rss_mb": process.memory_info().rss / 1e6 for role, process in roles.items() if process.is_running()
    }
    return result


def cpu_seconds(roles: dict[str, psutil.Process]) -> dict[str, float]:
    """CPU seconds used so far, by role."""
    return {role: sum(one.cpu_times()[:2]) for role, one in roles.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an update, 1000 bytes each")
    parser.add_argument("--seconds", type=float, default=20, help="length of the measurement")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--rule", default="delta", help="merge rule; adaptive keeps a device waiting for a publication")
    arguments = parser.parse_args()
    result = run(arguments.devices, arguments.kilobytes, arguments.seconds, arguments.gateways, arguments.rule)
    rate, bare = result.pop("updates_per_s"), result.pop("bare_per_s")
    print(f"{arguments.devices} devices, {arguments.kilobytes} kB an update, {arguments.gateways} gateway(s)")
    print(f"  rule {arguments.rule}")
    print(f"  end to end      {rate:8.1f} updates/s   (goal {GOAL_PER_S}: {'met' if rate >= GOAL_PER_S else 'missed'})")
    print(f"  bare MQTT       {bare:8.1f} messages/s  (one publisher, one subscriber, same broker and size)")
    print(f"  ratio           {rate / bare:8.2f}")
    for name, value in result.items():
        print(f"  {name:<16}{value:8.2f}")


if __name__ == "__main__":
    main()
