"""A thousand devices lose the broker and come back at once: how long until the service is whole again.

    python -m benchmarks.reconnect_storm
    python -m benchmarks.reconnect_storm --devices 100 --json result.json

Everyone has made an update meanwhile, so that connections, births, tasks and `devices` times `kilobytes` of updates all
come together. Mosquitto, pollen-gateway and pollen-server are real; the devices are simulated and dial at the same
moment, without the first random wait of pollen-edge (up to `reconnect_min_s`); after a failure they wait as it does.

power cut       the devices' connections fall silent and are dialled anew, while the broker holds the old ones for alive
broker killed   kill -9, so that it loses its store, and a start `outage` seconds later; times count from that start

"subscribed" is when the last device is, "whole" when each has the receipt for that update. Each with passwords on
plain connections and with mutual TLS.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.deployment import Certificates, Deployment, Running
from benchmarks.tables import table, write_json
from benchmarks.usage import Peak, Peaks


@dataclass(frozen=True, slots=True)
class Storm:
    """Seconds until the last was subscribed and until everyone had a receipt; `counts`: connections that failed, by
    reason, publishes that no gateway heard, and those repeated; the most CPU and memory by role."""

    subscribed_s: float
    whole_s: float
    counts: dict[str, int]
    peaks: dict[str, Peak]

    @property
    def refused(self) -> int:
        """Connections that failed."""
        return sum(count for what, count in self.counts.items() if what.startswith("refused"))


def power_cut(running: Running) -> Storm:
    """All connections fall silent, and everyone dials again."""
    with Peaks(running.roles) as watch:
        answers = running.ask("storm", silent=True)
        return _storm(answers, min(answer["started"] for answer in answers), watch)


def broker_killed(running: Running, outage_s: float) -> Storm:
    """kill -9 of the broker, and a start after `outage_s`."""
    with Peaks(running.roles) as watch:
        running.broker.kill()
        running.tell("storm", silent=False)
        time.sleep(outage_s)
        running.restart_broker()
        started = time.monotonic()
        return _storm(running.answers(), started, watch)


def _storm(answers: list[dict[str, Any]], started: float, watch: Peaks) -> Storm:
    counts: Counter[str] = Counter()
    for answer in answers:
        counts.update(answer["counts"])
    return Storm(
        max(answer["subscribed"] for answer in answers) - started,
        max(answer["receipted"] for answer in answers) - started,
        dict(counts),
        watch.peaks(),
    )


def run(arguments: argparse.Namespace) -> dict[str, Storm]:
    """Both storms, plain and with TLS, `rounds` times."""
    found: dict[str, Storm] = {}
    with tempfile.TemporaryDirectory(prefix="pollen-bench-ca-") as name:
        securities: list[Certificates | None] = [None]
        if not arguments.no_tls:
            print(f"making {arguments.devices} certificates", file=sys.stderr)
            securities.append(Certificates(Path(name) / "authority", arguments.devices))
        for number in range(arguments.rounds):
            for security in securities:
                deployment = Deployment(devices=arguments.devices, kilobytes=arguments.kilobytes, certificates=security)
                label = f"{'TLS' if security else 'plain'}, round {number + 1}"
                with deployment.started() as running:
                    running.connect()
                    running.ask("idle")
                    found[f"power cut, {label}"] = power_cut(running)
                    running.ask("idle")
                    found[f"broker killed, {label}"] = broker_killed(running, arguments.outage)
                print(f"{label}: done", file=sys.stderr)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an update, 1000 bytes each")
    parser.add_argument("--outage", type=float, default=5.0, help="seconds until the killed broker is started again")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-tls", action="store_true", help="plain connections only")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    arguments = parser.parse_args()
    found = run(arguments)
    print(f"{arguments.devices} devices, an update of {arguments.kilobytes} kB from each meanwhile")
    header = ["", "subscribed s", "whole s", "refused", "unheard", "repeated"]
    header += ["broker cores", "gateway cores", "server cores", "broker MB", "gateway MB", "server MB"]
    roles = ("broker", "gateway-0", "server")
    rows = [
        [what, storm.subscribed_s, storm.whole_s, storm.refused]
        + [storm.counts.get(kind, 0) for kind in ("unheard", "repeated")]
        + [storm.peaks[role].cpu for role in roles]
        + [storm.peaks[role].rss_mb for role in roles]
        for what, storm in found.items()
    ]
    print(table(header, rows))
    write_json(arguments.json, {what: asdict(storm) for what, storm in found.items()})


if __name__ == "__main__":
    main()
