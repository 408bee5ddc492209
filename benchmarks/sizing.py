"""What a fleet of any size needs, on paper: from measured costs of an update, of vitals and of a connection.

    python -m benchmarks.sizing
    python -m benchmarks.sizing --costs gateways.json --devices 25000 --updates-per-day 96 --tls

The formulas stand in `size`, and in docs/sizing.md. Without `--costs` (what `benchmarks.gateways --json` wrote) the
costs are those measured on two cores of an AMD EPYC that were busy with other work: too high rather than too low.
"""

import argparse
import json
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

from benchmarks.tables import table

DAY_S: Final = 86_400.0
FLEETS: Final = (10_000, 100_000, 1_000_000)
MOST_BUSY: Final = 0.6  # of a core that one process may use for long, so that queues stay short and peaks are absorbed
PEAK: Final = 3.0  # the busiest hour over the mean of the day


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU in ms of an update of `update_kb` and of one message of vitals, by role, and the broker's kB and CPU ms of a
    connection."""

    update_ms: dict[str, float]
    vitals_ms: dict[str, float]
    connection_kb: float
    connection_ms: float
    update_kb: float = 100.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the fleet does: per device and day `updates`; a message of vitals every `vitals_s` (0: none)."""

    devices: int
    updates: float
    vitals_s: float


@dataclass(frozen=True, slots=True)
class Size:
    """Updates and vitals a second in the busiest hour; the cores that broker and server would need then, as if they
    could use several; gateways; the broker's memory in GB for connections alone; Mbit/s up and down; seconds of broker
    CPU after which all are back from a power cut."""

    updates_per_s: float
    vitals_per_s: float
    broker_cores: float
    gateways: int
    server_cores: float
    broker_gb: float
    up_mbit: float
    down_mbit: float
    storm_s: float


PLAIN: Final = Costs(
    {"broker": 0.31, "gateway": 1.0, "server": 1.6}, {"broker": 0.06, "gateway": 0.43, "server": 0.22}, 4.4, 0.3
)
TLS: Final = Costs(
    {"broker": 0.47, "gateway": 1.2, "server": 1.7}, {"broker": 0.07, "gateway": 0.43, "server": 0.22}, 30.0, 2.2
)


def size(load: Load, costs: Costs) -> Size:
    """r = N u p / 86400 and v = N / vitals_s; a role's cores are (r c + v d) / 1000; gateways as many as keep each
    below MOST_BUSY, and two at least; each device fetches as many bytes as it sends."""
    updates = load.devices * load.updates * PEAK / DAY_S
    vitals = load.devices / load.vitals_s if load.vitals_s else 0.0
    cores = {
        role: (updates * costs.update_ms[role] + vitals * costs.vitals_ms[role]) / 1000 for role in costs.update_ms
    }
    mbit = updates * costs.update_kb * 8 / 1000
    return Size(
        updates,
        vitals,
        cores["broker"],
        max(2, math.ceil(cores["gateway"] / MOST_BUSY)),
        cores["server"],
        load.devices * costs.connection_kb / 1e6,
        mbit,
        mbit,
        load.devices * costs.connection_ms / 1000,
    )


def most_updates(load: Load, costs: Costs) -> float:
    """The updates a day and device at which one server is as busy as it may be; 0 when vitals alone are too much."""
    vitals = load.devices / load.vitals_s if load.vitals_s else 0.0
    left_ms = 1000 * MOST_BUSY - vitals * costs.vitals_ms["server"]
    return max(0.0, left_ms / costs.update_ms["server"] * DAY_S / PEAK / load.devices)


def read(path: Path, *, tls: bool) -> Costs:
    """The costs that `benchmarks.gateways --json` measured with one gateway, at half of its saturation."""
    told = json.loads(path.read_text(encoding="utf-8"))
    runs: list[dict[str, Any]] = told["runs"][f"{'TLS' if tls else 'plain'}, 1 gateway(s)"]

    def by_role(name: str) -> dict[str, float]:
        return {role: mean(run[name][role] for run in runs) for role in ("broker", "gateway", "server")}

    return Costs(
        by_role("half_cpu_ms"),
        by_role("vitals_cpu_ms"),
        mean(run["connection_kb"] for run in runs),
        mean(run["connection_cpu_ms"] for run in runs),
        told["kilobytes"],
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, help="what benchmarks.gateways --json wrote")
    parser.add_argument("--devices", type=int, nargs="+", default=list(FLEETS))
    parser.add_argument("--updates-per-day", type=float, nargs="+", default=[4, 24, 144], help="of each device")
    parser.add_argument("--vitals-s", type=float, default=300, help="seconds between a device's vitals; 0: none")
    parser.add_argument("--tls", action="store_true", help="mutual TLS")
    arguments = parser.parse_args()
    costs = read(arguments.costs, tls=arguments.tls) if arguments.costs else TLS if arguments.tls else PLAIN
    header = ["devices", "updates/day", "updates/s", "vitals/s", "broker cores", "gateways", "server cores"]
    header += ["broker GB", "Mbit/s up", "down", "storm s", "most updates/day"]
    rows = []
    for devices in arguments.devices:
        for updates in arguments.updates_per_day:
            load = Load(devices, updates, arguments.vitals_s)
            one = size(load, costs)
            rows.append([f"{devices:,}", updates, *astuple(one), most_updates(load, costs)])
    print(f"busiest hour = {PEAK:g} x the day's mean; one process at most {MOST_BUSY:.0%} of a core for long")
    print(table(header, rows))


if __name__ == "__main__":
    main()
