"""Honest devices' latency before, during and after one device, or one stranger, misbehaves.

    python -m benchmarks.hostile_load
    python -m benchmarks.hostile_load --devices 20 --seconds 5 --attacks flood-small loris-grpc

Honest devices publish updates at random times at a steady rate; p50 and p99 are from publish to receipt. The ratio is
p99 during over the mean of before and after (goal: at most 2). The attacker runs on the same cores.

flood-small, flood-large   1,000 updates a second of 100 bytes, of 100 kB, by a device with valid credentials
flood-vitals               1,000 vitals a second
oversize                   updates of 20 MB, more than the fleet takes, twice a second
loris-grpc, loris-http     200 connections to the server's gRPC port, to every HTTP port, a byte a second each
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.deployment import FLEET, Certificates, Deployment, Running
from benchmarks.roles import pipes, process
from benchmarks.tables import goal, table, write_json
from benchmarks.usage import Peaks

ATTACKER: Final = "evil"
GOAL_RATIO: Final = 2.0
SETTLE_S: Final = 3.0
CONNECTIONS: Final = 200
FLOODS: Final[dict[str, dict[str, Any]]] = {
    "flood-small": {"attack": "flood", "per_s": 1000, "payload_bytes": 100},
    "flood-large": {"attack": "flood", "per_s": 1000, "payload_bytes": 100_000},
    "flood-vitals": {"attack": "vitals", "per_s": 1000, "payload_bytes": 100},
    "oversize": {"attack": "flood", "per_s": 2, "payload_bytes": 20_000_000},
}
LORISES: Final = ("loris-grpc", "loris-http")
PHASES: Final = ("before", "during", "after")


@dataclass(frozen=True, slots=True)
class Phase:
    """Updates merged a second, and milliseconds from publish to receipt; `counts`: everything else that happened."""

    per_s: float
    p50_ms: float
    p99_ms: float
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Attacked:
    """The three phases, what the attacker got rid of, and the gateway's and broker's largest memory in MB."""

    before: Phase
    during: Phase
    after: Phase
    attack: dict[str, float]
    rss_mb: dict[str, float]

    @property
    def ratio(self) -> float:
        """p99 during over the mean of before and after."""
        return 2 * self.during.p99_ms / (self.before.p99_ms + self.after.p99_ms)


def attacked(running: Running, attack: str, arguments: argparse.Namespace, tls: dict[str, str] | None) -> Attacked:
    """Measure one attack."""
    with Peaks(running.roles) as watch:
        before = _phase(running, arguments.seconds)
        with _attacker(running, attack, tls) as told:
            during = _phase(running, arguments.seconds)
        after = _phase(running, arguments.seconds)
        memory = {role: peak.rss_mb for role, peak in watch.peaks().items() if not role.startswith("devices")}
    return Attacked(before, during, after, told, memory)


def _phase(running: Running, seconds: float) -> Phase:
    time.sleep(min(SETTLE_S, seconds))
    running.count()
    time.sleep(seconds)
    counts, waits = running.count()
    p50, p99 = np.percentile(waits, [50, 99]) if waits else (float("inf"), float("inf"))
    return Phase(len(waits) / seconds, float(p50), float(p99), dict(counts - Counter(merged=counts["merged"])))


@contextlib.contextmanager
def _attacker(running: Running, attack: str, tls: dict[str, str] | None) -> Iterator[dict[str, float]]:
    if attack in FLOODS:
        settings: dict[str, Any] = dict(FLOODS[attack])
        settings |= {"fleet": FLEET, "name": ATTACKER, "port": running.broker.port, "tls": tls}
        settings["password"] = "" if tls else running.password
    else:
        kind = attack.removeprefix("loris-")
        ports = [running.server_port] if kind == "grpc" else running.http_ports
        settings = {"attack": "loris", "opening": kind, "ports": ports, "connections": CONNECTIONS}
    file = running.folder / f"{attack}.json"
    file.write_text(json.dumps(settings))
    told: dict[str, float] = {}
    with process(running.folder, attack, "-m", "benchmarks.attackers", str(file)) as child:
        yield told
        commands, answers = pipes(child)
        commands.close()
        line = answers.readline()
        if not line:
            raise SystemExit(f"error: the attacker ended: {(running.folder / f'{attack}.log').read_text()[-1000:]}")
        told |= json.loads(line)


def run(arguments: argparse.Namespace) -> dict[str, Attacked]:
    """All attacks in turn on one deployment."""
    found: dict[str, Attacked] = {}
    with contextlib.ExitStack() as stack:
        certificates, tls = None, None
        if arguments.tls:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pollen-bench-ca-")))
            certificates = Certificates(folder / "authority", arguments.devices, (ATTACKER,))
            tls = {key: str(path) for key, path in certificates.files(ATTACKER).items()}
        deployment = Deployment(devices=arguments.devices, certificates=certificates, others=(ATTACKER,), http=True)
        running = stack.enter_context(deployment.started())
        running.connect()
        running.ask("idle")
        running.set_pace(arguments.per_s)
        for attack in arguments.attacks:
            found[attack] = attacked(running, attack, arguments, tls)
            print(f"{attack}: ratio {found[attack].ratio:.2f}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200, help="honest ones")
    parser.add_argument("--per-s", type=float, default=100, help="their updates a second, of 100 kB")
    parser.add_argument("--seconds", type=float, default=15, help="length of each phase")
    parser.add_argument("--attacks", nargs="+", choices=(*FLOODS, *LORISES), default=[*FLOODS, *LORISES])
    parser.add_argument("--tls", action="store_true", help="mutual TLS")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    arguments = parser.parse_args()
    found = run(arguments)
    print(f"{arguments.devices} honest devices, {arguments.per_s:g} updates/s of 100 kB")
    header = ["", *[f"p99 ms {phase}" for phase in PHASES], "ratio", "per s during", "sent/s", "held back", "closed"]
    header += ["broker MB", "gateway MB", "server MB"]
    rows = [
        [attack, *[getattr(one, phase).p99_ms for phase in PHASES], one.ratio, one.during.per_s]
        + [one.attack["sent"] / one.attack["seconds"], int(one.attack["held_back"]), int(one.attack["thrown_out"])]
        + [one.rss_mb[role] for role in ("broker", "gateway-0", "server")]
        for attack, one in found.items()
    ]
    print(table(header, rows))
    print(goal("largest ratio", max(one.ratio for one in found.values()), GOAL_RATIO, least=False))
    write_json(arguments.json, {attack: asdict(one) for attack, one in found.items()})


if __name__ == "__main__":
    main()
