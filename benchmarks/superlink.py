"""Pollen beside Flower's SuperLink with ordinary SuperNodes, both doing the same: 100 kB updates, added as they come.

    python -m benchmarks.superlink
    python -m benchmarks.superlink --nodes 2 --seconds 10

The SuperNodes' ClientApp trains nothing and answers at once, as the simulated devices of the other half do; the
ServerApp keeps one message under way at each node. The order is Pollen, SuperLink, Pollen. Flower's latency is from
push to pull of one message, there and back, and its model goes down with each; Pollen's is from publish to receipt, and
its devices here fetch the newest weights before each update. Flower starts a process for each message at a node, which
is most of its time. Simulated devices say nothing of a device's own memory: `benchmarks.device_memory` does.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.deployment import Deployment
from benchmarks.gateways import UNLIMITED, Measured, measure
from benchmarks.tables import table, write_json
from benchmarks.usage import tree_cpu_seconds, tree_rss_mb
from tests.system.superlink import SuperLink

APP: Final = Path(__file__).parent / "superlink_app"
START_S: Final = 300.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Flower:
    """Updates a second, milliseconds from push to pull, CPU in ms an update of all SuperNodes and of SuperLink with
    its ServerApp, and resident MB of one SuperNode and of SuperLink, each with its child processes."""

    per_s: float
    p50_ms: float
    p99_ms: float
    node_cpu_ms: float
    link_cpu_ms: float
    node_mb: float
    link_mb: float


class Window:
    """CPU and memory of SuperLink and SuperNodes between the making and the filling of a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.cpu: list[tuple[float, float]] = []
        self.mb: tuple[float, float] = (0.0, 0.0)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the window has ended."""
        self._thread.join(START_S)
        if len(self.cpu) < 2:
            raise SystemExit(f"error: the measurement did not end within {START_S:g} s")

    def _watch(self) -> None:
        while not self.file.exists():
            time.sleep(POLL_S)
        nodes, link = _processes()
        self.cpu.append(_cpu(nodes, link))
        while not self.file.stat().st_size:
            time.sleep(POLL_S)
            self.mb = max(self.mb, (mean(tree_rss_mb(one) for one in nodes), sum(tree_rss_mb(one) for one in link)))
        self.cpu.append(_cpu(nodes, link))


def _processes() -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The SuperNodes and the SuperLink that this process has started."""
    children = psutil.Process().children()

    def named(name: str) -> list[psutil.Process]:
        return [one for one in children if any(name in word for word in one.cmdline())]

    return named("flower-supernode"), named("flower-superlink")


def _cpu(nodes: Sequence[psutil.Process], link: Sequence[psutil.Process]) -> tuple[float, float]:
    return sum(tree_cpu_seconds(one) for one in nodes), sum(tree_cpu_seconds(one) for one in link)


def flower(nodes: int, kilobytes: int, seconds: float) -> Flower:
    """Run the app on a SuperLink of its own."""
    with tempfile.TemporaryDirectory(prefix="pollen-bench-") as name:
        file = Path(name) / "window"
        window = Window(file)
        with SuperLink(Path(name) / "flower", nodes) as superlink:
            config: dict[str, str | int | float] = {
                "nodes": nodes,
                "kilobytes": kilobytes,
                "seconds": float(seconds),
                "window": str(file),
            }
            superlink.run(APP, config, timeout_s=START_S + seconds)
            window.wait()
        told = json.loads(file.read_text())
    count = len(told["waits_ms"])
    if not count:
        raise SystemExit(f"error: no node answered within {seconds:g} s; take longer")
    p50, p99 = np.percentile(told["waits_ms"], [50, 99])
    node_s, link_s = (after - before for before, after in zip(*window.cpu, strict=True))
    return Flower(
        count / told["seconds"], float(p50), float(p99), 1000 * node_s / count, 1000 * link_s / count, *window.mb
    )


def pollen(nodes: int, kilobytes: int, seconds: float) -> Measured:
    """The same with as many devices."""
    deployment = Deployment(devices=nodes, kilobytes=kilobytes, processes=1, fetches=True, gateway_limits=UNLIMITED)
    return measure(deployment, seconds)


def show(nodes: int, found: Flower, before: Measured, after: Measured) -> dict[str, float]:
    """Print the table; returns the ratios, Pollen over SuperLink."""
    both = (before, after)
    ours = {
        "updates/s": mean(one.per_s for one in both),
        "p50 ms": mean(one.saturated_p50_ms for one in both),
        "p99 ms": mean(one.saturated_p99_ms for one in both),
        "CPU ms an update, devices or nodes": mean(one.cpu_ms["devices"] for one in both),
        "CPU ms an update, everything else": mean(
            sum(one.cpu_ms[role] for role in ("broker", "gateway", "server")) for one in both
        ),
        "MB of everything else": mean(
            sum(one.rss_mb[role] for role in ("broker", "gateway", "server")) for one in both
        ),
    }
    theirs = [found.per_s, found.p50_ms, found.p99_ms, found.node_cpu_ms, found.link_cpu_ms, found.link_mb]
    ratios = {what: value / other for (what, value), other in zip(ours.items(), theirs, strict=True)}
    rows = [[what, ours[what], other, ratios[what]] for what, other in zip(ours, theirs, strict=True)]
    print(f"{nodes} simulated devices, {nodes} SuperNodes")
    print(table(["", "Pollen", "SuperLink", "ratio"], rows))
    print(f"  one SuperNode with its processes: {found.node_mb:.0f} MB resident")
    return ratios


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an update, 1000 bytes each")
    parser.add_argument("--seconds", type=float, default=30, help="length of each measurement")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    arguments = parser.parse_args()
    size: tuple[int, int, float] = (arguments.nodes, arguments.kilobytes, arguments.seconds)
    before = pollen(*size)
    print(f"Pollen: {before.per_s:.1f} updates/s", file=sys.stderr)
    found = flower(*size)
    print(f"SuperLink: {found.per_s:.2f} updates/s", file=sys.stderr)
    after = pollen(*size)
    ratios = show(arguments.nodes, found, before, after)
    result: dict[str, Any] = {"pollen": [asdict(before), asdict(after)], "superlink": asdict(found), "ratios": ratios}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
