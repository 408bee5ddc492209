"""The quick faults that tests/system does not inject, on a few devices: what `make test` sees of the fault suite."""

import pytest

from tests.faults import injections
from tests.faults.fleet import Fleet
from tests.faults.injections import YEAR_S
from tests.faults.lossy_link import Line

pytestmark = pytest.mark.timeout(240)

NOTICE_S = 60.0
BAD = Line(delay_s=0.3, jitter_s=0.1, loss=0.05, duplicates=0.01, reordering=0.02)


def test_a_broker_that_lost_its_store(fleet: Fleet) -> None:
    injections.wipe_store(fleet)


def test_a_bad_line(network_fleet: Fleet) -> None:
    injections.stay_bad(network_fleet, BAD, merges_each=1, seconds=NOTICE_S)


def test_half_open_connections(network_fleet: Fleet) -> None:
    injections.fall_silent(network_fleet, seconds=NOTICE_S)


def test_a_full_disk_at_the_server(disk_fleet: Fleet) -> None:
    injections.fill_the_servers_disk(disk_fleet, seconds=NOTICE_S)


def test_clocks_that_jump(fleet: Fleet) -> None:
    everything = ("broker", "server", "gateway-1", *fleet.devices)
    injections.jump_clocks(fleet, "all clocks 15 years ahead", everything, 15 * YEAR_S)
    injections.jump_clocks(fleet, "all clocks in 1975", everything, -51 * YEAR_S)
