"""Fifty devices train, and one thing after another breaks: everything comes back, and every update is merged once.

`make test-faults`; about ten minutes on two cores. Network namespaces, TUN devices and small disks need root.
"""

import pytest

from tests.faults import injections
from tests.faults.fleet import Fleet
from tests.faults.injections import DAY_S, YEAR_S
from tests.faults.lossy_link import Line
from tests.system.ledger import audit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DOWN_S = 5.0
NOTICE_S = 60.0
BAD = Line(delay_s=0.3, jitter_s=0.1, loss=0.05, duplicates=0.01, reordering=0.02)


def test_without_a_fault_everyone_is_merged_again_and_again(fleet: Fleet) -> None:
    """The yardstick: recovery can't be quicker than the fleet's own pace."""
    with fleet.fault("none"):
        pass


def test_a_killed_broker(fleet: Fleet) -> None:
    injections.kill(fleet, "broker", down_s=DOWN_S)


def test_a_broker_that_lost_its_store(fleet: Fleet) -> None:
    injections.wipe_store(fleet)


def test_a_killed_gateway(fleet: Fleet) -> None:
    injections.kill(fleet, "gateway-1", down_s=DOWN_S)


def test_a_gateway_joins_one_dies_and_one_leaves(fleet: Fleet) -> None:
    with fleet.fault("a second gateway joins"), fleet.expect_logged(("gateway-2",), "is ready", NOTICE_S):
        fleet.start_gateway("gateway-2")
    with fleet.fault("kill -9 of one of two gateways") as fault:
        fleet.kill("gateway-1")
        fault.injected()
    with fleet.expect_logged(("gateway-1",), "is ready", NOTICE_S):
        fleet.start_gateway("gateway-1")
    with fleet.fault("one of two gateways leaves"):
        fleet.stop("gateway-2")


def test_a_killed_server(fleet: Fleet) -> None:
    injections.kill(fleet, "server", down_s=DOWN_S)


def test_ten_devices_killed_at_once(fleet: Fleet) -> None:
    injections.kill_devices(fleet, fleet.devices[5:15], down_s=DOWN_S)


def test_a_pulled_cable(network_fleet: Fleet) -> None:
    injections.pull_cable(network_fleet, seconds=20.0)


def test_half_open_connections(network_fleet: Fleet) -> None:
    injections.fall_silent(network_fleet, seconds=NOTICE_S)


def test_a_bad_line(network_fleet: Fleet) -> None:
    counts = injections.stay_bad(network_fleet, BAD, merges_each=3, seconds=NOTICE_S)
    assert counts.packets > 500
    assert 0.02 < counts.lost / counts.packets < 0.08
    print(counts)


def test_a_full_disk_at_the_server(disk_fleet: Fleet) -> None:
    injections.fill_the_servers_disk(disk_fleet, seconds=NOTICE_S)
    assert disk_fleet.logged("server", "check the disk's space") >= 1


def test_full_disks_at_devices(disk_fleet: Fleet) -> None:
    injections.fill_devices_disks(disk_fleet, merges_each=4, greedy_s=10.0, seconds=NOTICE_S)


def test_clocks_that_jump(fleet: Fleet) -> None:
    services = ("broker", "server", "gateway-1")
    injections.jump_clocks(fleet, "services' clocks a day ahead", services, DAY_S)
    injections.jump_clocks(fleet, "services' clocks a day back", services, -DAY_S)
    injections.jump_clocks(fleet, "devices' clocks 15 years ahead", fleet.devices, 15 * YEAR_S)
    injections.jump_clocks(fleet, "devices' clocks in 1975", fleet.devices, -51 * YEAR_S)
    injections.jump_clocks(fleet, "all clocks right again", (*services, *fleet.devices), 0)


def test_a_server_that_hangs(fleet: Fleet) -> None:
    injections.freeze(fleet, "server", seconds=20.0)


def test_a_gateway_that_hangs(fleet: Fleet) -> None:
    injections.freeze(fleet, "gateway-1", seconds=20.0)


def test_a_reconnect_storm(fleet: Fleet) -> None:
    injections.storm(fleet, seconds=NOTICE_S)


def test_a_power_cut_of_everything(fleet: Fleet) -> None:
    injections.cut_power(fleet)


def test_at_the_end_every_update_of_every_device_is_in_one_version(fleet: Fleet) -> None:
    """The whole run's books: outboxes, logs and receipts against the server's state store."""
    fleet.sound = False
    fleet.stop(*fleet.devices)
    fleet.stop("gateway-1")
    fleet.stop("server")
    met = {one.fault: one.in_flight for one in fleet.recoveries if one.fault.startswith("kill")}
    assert not met or any(met.values()), f"no kill met an update in flight: {met}"
    ledger = audit(fleet, fleet.devices)
    print(ledger)
    assert ledger.version > 10 * len(fleet.devices)
