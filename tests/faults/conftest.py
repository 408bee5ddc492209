"""Fixtures of the fault suite: one fleet a module, started again when a fault has broken it; the table at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import recovery
from tests.faults.fleet import Fleet
from tests.system.conftest import bundle_file

__all__ = ["bundle_file"]

RESULTS = pytest.StashKey[dict[str, tuple[int, list[recovery.Recovery]]]]()
JSON = Path(__file__).parents[2] / "runs" / "faults.json"
SIZES = {
    "test_faults": {"count": 50, "cabled": 15, "far": 15, "small": 3, "period_s": 0.6, "keepalive_s": 10},
    "test_faults_of_a_few": {"count": 6, "cabled": 0, "far": 2, "small": 1, "period_s": 0.1, "keepalive_s": 3},
}


@pytest.fixture(scope="module")
def fleets(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mosquitto_binary: Path,
    bundle_file: Path,
) -> Iterator[Callable[[], Fleet]]:
    """The module's fleet; a new one when the last did not survive."""
    module = request.module.__name__.rpartition(".")[2]
    size = SIZES[module]
    running: list[Fleet] = []
    recoveries: list[recovery.Recovery] = []
    request.config.stash.setdefault(RESULTS, {})[module] = int(size["count"]), recoveries
    with ExitStack() as stack:

        def current() -> Fleet:
            if not running or not running[-1].sound:
                stack.pop_all().close()
                folder = tmp_path_factory.mktemp("fleet", numbered=True) / "fleet"
                fleet = Fleet(folder, mosquitto_binary, bundle_file, **size)  # type: ignore[arg-type]
                fleet.recoveries = recoveries
                running.append(stack.enter_context(fleet))
            return running[-1]

        yield current


@pytest.fixture
def fleet(fleets: Callable[[], Fleet]) -> Iterator[Fleet]:
    """The fleet in full service. When the test fails, the ends of all logs are printed."""
    running = fleets()
    yield running
    if not running.sound:
        running.show_logs(lines=15)


@pytest.fixture
def network_fleet(fleet: Fleet) -> Fleet:
    """The fleet, where it has devices in network namespaces."""
    if fleet.no_network:
        pytest.skip(f"no network namespaces: {fleet.no_network}")
    return fleet


@pytest.fixture
def disk_fleet(fleet: Fleet) -> Fleet:
    """The fleet, where some of it is on small disks."""
    if fleet.no_small_disk:
        pytest.skip(f"no small disks: {fleet.no_small_disk}")
    return fleet


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of each fleet; the large one's as JSON too."""
    for module, (devices, recoveries) in config.stash.get(RESULTS, {}).items():
        if not recoveries:
            continue
        terminalreporter.section(f"faults while {devices} devices train")
        for line in recovery.table(recoveries):
            terminalreporter.line(line)
        if module == "test_faults":
            recovery.write(JSON, devices, recoveries)
            terminalreporter.line(f"as JSON: {JSON}")
