"""Updates a second end to end from 1,000 connected devices, latency at half that load, and what an update costs.

    python -m benchmarks.gateways
    python -m benchmarks.gateways --devices 100 --seconds 5 --rounds 1 --json result.json

Mosquitto, pollen-gateways and pollen-server are real processes; the devices are simulated (simulated_devices.py),
answer at once and train nothing. Plain and mutual TLS (everywhere: each device with its own certificate, and the
gateway's stream), one and two gateways: each configuration first at saturation, every device with an update under way,
then at half that rate, at random times. The order is turned round in every second round, so that a machine that gets
slower or faster meanwhile favours nobody. Beside them, once: the default rule, adaptive, and devices that fetch the
newest weights before each update, as pollen-edge does. The yardstick is the same broker with one publisher and one
subscriber. CPU in ms an update; the simulated devices' own is named, as it takes its share of the same cores.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np

from benchmarks.bare_mqtt import bare_mqtt
from benchmarks.deployment import FLEET, Certificates, Deployment, Running, gateway_name
from benchmarks.tables import goal, table, write_json
from benchmarks.usage import Peaks, cpu_seconds, rss_mb

GOAL_PER_S: Final = 500.0
GOAL_P99_MS: Final = 1000.0
GOAL_RSS_MB: Final = 120.0
GOAL_TLS_COST: Final = 0.25
WARM_UP_S: Final = 5.0
VITALS_PER_S: Final = 500.0
# One device may be faster here than a gateway lets an honest one be.
UNLIMITED: Final[Mapping[str, int]] = {"uploads_per_s": 0, "messages_per_s": 0, "bytes_per_s": 0}
ROLES: Final = ("broker", "gateway", "server", "devices")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What differs between the rows."""

    tls: bool = False
    gateways: int = 1
    rule: str = "delta"
    fetches: bool = False

    @property
    def name(self) -> str:
        """How the table calls it."""
        extras = [self.rule] * (self.rule != "delta") + ["fetching weights"] * self.fetches
        return ", ".join(["TLS" if self.tls else "plain", f"{self.gateways} gateway(s)", *extras])


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: rates in updates/s, latencies in ms, CPU in ms an update by role (gateways and devices together), the
    largest resident memory in MB (of one gateway, all devices), the broker's kB and CPU ms a connection, and CPU ms of
    vitals, by role."""

    per_s: float
    half_per_s: float
    p50_ms: float
    p99_ms: float
    saturated_p50_ms: float
    saturated_p99_ms: float
    cpu_ms: dict[str, float]
    half_cpu_ms: dict[str, float]
    rss_mb: dict[str, float]
    connection_kb: float
    connection_cpu_ms: float
    vitals_cpu_ms: dict[str, float]


def bare(kilobytes: int, seconds: float) -> float:
    """Messages a second through a broker that does nothing else."""
    with Deployment(devices=0, gateways=1, processes=0).started() as running:
        account = gateway_name(1)  # one that no gateway uses
        port, password = running.broker.port, running.password
        return bare_mqtt(port, FLEET, account, password, kilobytes=kilobytes, seconds=seconds)


def measure(deployment: Deployment, seconds: float) -> Measured:
    """Start `deployment`, saturate it, then halve the load."""
    with deployment.started() as running, Peaks(running.roles) as watch:
        before_mb, before_s = rss_mb(running.roles)["broker"], cpu_seconds(running.roles)["broker"]
        running.connect()
        running.ask("idle")
        each_kb = 1000 * (rss_mb(running.roles)["broker"] - before_mb) / deployment.devices
        each_ms = 1000 * (cpu_seconds(running.roles)["broker"] - before_s) / deployment.devices
        running.set_pace(None)
        per_s, waits, cpu_ms = _window(running, seconds)
        running.set_pace(per_s / 2)
        half_per_s, half_waits, half_cpu_ms = _window(running, seconds)
        running.set_pace(0.0)
        vitals_cpu_ms = _vitals(running, seconds / 2)
        peaks = {role: peak.rss_mb for role, peak in watch.peaks().items()}
    return Measured(
        per_s,
        half_per_s,
        *_percentiles(half_waits),
        *_percentiles(waits),
        cpu_ms,
        half_cpu_ms,
        {role: max(mb for name, mb in peaks.items() if name.startswith(role)) for role in ROLES},
        each_kb,
        each_ms,
        vitals_cpu_ms,
    )


def _window(running: Running, seconds: float) -> tuple[float, list[float], dict[str, float]]:
    """Merged updates a second, their latencies and CPU, over `seconds`, after a while to settle."""
    time.sleep(min(WARM_UP_S, seconds))
    running.count()
    started, before = time.monotonic(), cpu_seconds(running.roles)
    time.sleep(seconds)
    counts, waits = running.count()
    elapsed, after = time.monotonic() - started, cpu_seconds(running.roles)
    if not waits:
        raise SystemExit(f"error: nothing was merged within {seconds:g} s: {dict(counts)}")
    return len(waits) / elapsed, waits, _each_ms(before, after, len(waits))


def _vitals(running: Running, seconds: float) -> dict[str, float]:
    """CPU in ms of one message of vitals, by role; what nothing costs is in it, as little as that is."""
    running.set_vitals(VITALS_PER_S)
    time.sleep(1.0)
    started, before = time.monotonic(), cpu_seconds(running.roles)
    time.sleep(seconds)
    after, count = cpu_seconds(running.roles), VITALS_PER_S * (time.monotonic() - started)
    running.set_vitals(0.0)
    return _each_ms(before, after, count)


def _each_ms(before: dict[str, float], after: dict[str, float], count: float) -> dict[str, float]:
    """CPU in ms a message, by role, all of one role together."""
    return {
        role: 1000 * sum(after[name] - before[name] for name in before if name.startswith(role)) / count
        for role in ROLES
    }


def _percentiles(waits: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(waits, [50, 99])
    return float(p50), float(p99)


def average(runs: Sequence[Measured]) -> Measured:
    """The means of several runs; of memory the largest."""
    maps: dict[str, Any] = {
        name: {role: mean(getattr(run, name)[role] for run in runs) for role in ROLES}
        for name in ("cpu_ms", "half_cpu_ms", "vitals_cpu_ms")
    }
    maps["rss_mb"] = {role: max(run.rss_mb[role] for run in runs) for role in ROLES}
    numbers = {name: mean(getattr(run, name) for run in runs) for name in Measured.__slots__ if name not in maps}
    return Measured(**numbers, **maps)


def run(arguments: argparse.Namespace) -> tuple[dict[Configuration, list[Measured]], float]:
    """Measure all configurations, `rounds` times, to and fro; the yardstick before and after."""
    repeated = [Configuration(tls, gateways) for tls in (False, True) for gateways in (1, 2)]
    once = [Configuration(rule="adaptive"), Configuration(fetches=True)]
    if arguments.quick:
        repeated, once = [Configuration(), Configuration(tls=True)], []
    found: dict[Configuration, list[Measured]] = {}
    yardstick = [bare(arguments.kilobytes, arguments.seconds)]
    with tempfile.TemporaryDirectory(prefix="pollen-bench-ca-") as name:
        _say(f"making {arguments.devices} certificates")
        certificates = Certificates(Path(name) / "authority", arguments.devices)
        _say(f"made in {certificates.seconds:.0f} s")
        for number in range(arguments.rounds):
            for configuration in (repeated if number % 2 == 0 else repeated[::-1]) + (once if number == 0 else []):
                deployment = Deployment(
                    devices=arguments.devices,
                    kilobytes=arguments.kilobytes,
                    gateways=configuration.gateways,
                    rule=configuration.rule,
                    certificates=certificates if configuration.tls else None,
                    fetches=configuration.fetches,
                    gateway_limits=UNLIMITED,
                )
                measured = measure(deployment, arguments.seconds)
                found.setdefault(configuration, []).append(measured)
                _say(f"{configuration.name}: {measured.per_s:.0f} updates/s, p99 {measured.p99_ms:.0f} ms at half that")
    yardstick.append(bare(arguments.kilobytes, arguments.seconds))
    return found, mean(yardstick)


def show(arguments: argparse.Namespace, found: dict[Configuration, list[Measured]], bare_per_s: float) -> None:
    """Print table and goals."""
    rows = {configuration: average(runs) for configuration, runs in found.items()}
    base = rows[Configuration()]
    print(f"{arguments.devices} devices connected, {arguments.kilobytes} kB an update, {arguments.rounds} round(s)")
    header = ["", "updates/s", "ratio", "half", "p50 ms", "p99 ms", *[f"{role} ms" for role in ROLES]]
    header += ["broker MB", "gateway MB", "server MB", "kB/conn.", "ms/conn."]
    lines = [
        [one.name, row.per_s, row.per_s / base.per_s, row.half_per_s, row.p50_ms, row.p99_ms]
        + [row.cpu_ms[role] for role in ROLES]
        + [row.rss_mb[role] for role in ROLES[:3]]
        + [row.connection_kb, row.connection_cpu_ms]
        for one, row in rows.items()
    ]
    print(table(header, lines))
    print(
        f"  bare MQTT, one publisher, one subscriber: {bare_per_s:.0f} messages/s, ratio {base.per_s / bare_per_s:.2f}"
    )
    vitals = ", ".join(f"{role} {base.vitals_cpu_ms[role]:.3f}" for role in ROLES[:3])
    print(f"  CPU ms of one message of vitals: {vitals}")
    tls = rows[Configuration(tls=True)]
    print(goal("updates/s, plain, 1 gateway", base.per_s, GOAL_PER_S, least=True))
    print(goal("p99 ms at half that load", base.p99_ms, GOAL_P99_MS, least=False))
    print(goal("gateway MB, largest", max(row.rss_mb["gateway"] for row in rows.values()), GOAL_RSS_MB, least=False))
    print(goal("share of updates/s that TLS costs", 1 - tls.per_s / base.per_s, GOAL_TLS_COST, least=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an update, 1000 bytes each")
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one gateway and rule delta only")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    arguments = parser.parse_args()
    found, bare_per_s = run(arguments)
    show(arguments, found, bare_per_s)
    result: dict[str, Any] = {one.name: [asdict(row) for row in rows] for one, rows in found.items()}
    size = {"devices": arguments.devices, "kilobytes": arguments.kilobytes, "bare_per_s": bare_per_s}
    write_json(arguments.json, size | {"runs": result})


if __name__ == "__main__":
    main()
