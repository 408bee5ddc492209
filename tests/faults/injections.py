"""The faults themselves, each from its injection to the books that balance again."""

import time
from collections.abc import Sequence

from tests.faults.fleet import Fleet
from tests.faults.lossy_link import GOOD, SILENT, Counts, Line
from tests.system.whole import log_lines

DAY_S = 86_400
YEAR_S = 365 * DAY_S
SOON_S = 120.0
STORED = "mosquitto.db"
NO_PING = "connection lost (keep alive timeout)"  # what a device says
EXPIRED = "has exceeded timeout"  # what Mosquitto says when a client's keep-alive is over


def kill(fleet: Fleet, name: str, *, down_s: float) -> None:
    """kill -9 of one process, which is started again after `down_s`."""
    with fleet.fault(f"kill -9 of the {name}") as fault:
        fleet.kill(name)
        fault.injected()
        fleet.remain(down_s)
        fault.cleared()
        fleet.restart(name)


def kill_devices(fleet: Fleet, names: tuple[str, ...], *, down_s: float) -> None:
    """kill -9 of several devices at once."""
    with fleet.fault(f"kill -9 of {len(names)} devices at once", hit=names) as fault:
        for name in names:
            fleet.kill(name)
        fault.injected()
        fleet.remain(down_s)
        fault.cleared()
        fleet.restart_all(names)


def wipe_store(fleet: Fleet) -> None:
    """The broker comes back without its store: no session, no retained message, nothing queued."""
    store = fleet.broker.folder / STORED
    with fleet.fault("broker's store wiped") as fault:
        fleet.stop("broker")
        fault.injected()
        assert store.exists(), "it writes its store when it stops"
        store.unlink()
        fault.cleared()
        fleet.start_broker()


def pull_cable(fleet: Fleet, *, seconds: float) -> None:
    """No carrier and no route for the cabled devices; the others go on."""
    with fleet.fault("cable pulled", hit=fleet.cabled) as fault:
        fleet.cable.pull()
        fault.injected()
        cut_at = fleet.books.count
        fleet.remain(seconds)
        assert len(fleet.books.without_merge(fleet.cabled, cut_at)) >= len(fleet.cabled) // 2, "the cable was cut"
        assert not set(fleet.books.without_merge(fleet.devices, cut_at)) - set(fleet.cabled), "the others went on"
        fault.cleared()
        fleet.cable.plug()


def fall_silent(fleet: Fleet, *, seconds: float) -> None:
    """Every packet of the far devices is lost, and nobody gets a reset: the connections are half open.

    It lasts until each of them and the broker have given the connection up by their keep-alive, or `seconds`.
    """
    timeouts = fleet.logged("broker", EXPIRED)
    with fleet.fault("half-open TCP: every packet lost", hit=fleet.far) as fault:
        with fleet.expect_logged(fleet.far, NO_PING, seconds):
            fleet.link.line = SILENT
            fault.injected()
        noticed = timeouts + len(fleet.far)
        fleet.wait_for(lambda: fleet.logged("broker", EXPIRED) >= noticed, seconds, "the broker notices too")
        fault.cleared()
        fleet.link.line = GOOD


def stay_bad(fleet: Fleet, line: Line, *, merges_each: int, seconds: float) -> Counts:
    """The far devices train over a bad line: each has `merges_each` updates merged while it is bad."""
    with fleet.fault(
        f"{line.delay_s * 1e3:.0f} ± {line.jitter_s * 1e3:.0f} ms, {line.loss:.0%} lost each way", hit=fleet.far
    ) as fault:
        fleet.link.take_counts()
        fleet.link.line = line
        fault.injected()
        for _ in range(merges_each):
            assert fleet.books.wait_for_each(fleet.far, seconds) is not None, "the far devices go on"
        counts = fleet.link.take_counts()
        fault.cleared()
        fleet.link.line = GOOD
    return counts


def fill_the_servers_disk(fleet: Fleet, *, seconds: float) -> int:
    """The server can't commit: it ends with an error, as often as it is started again, until there is room."""
    disk, ends = fleet.disks["server"], 0
    with fleet.fault("disk full at the server") as fault:
        disk.fill()
        fleet.wait_for(lambda: fleet.has_ended("server") is not None, seconds, "the server ends")
        fault.injected()
        stood_at = fleet.books.count
        for _ in range(2):
            ends += 1
            assert fleet.has_ended("server") == 1
            disk.fill()
            fleet.start_server(wait=False)
            fleet.wait_for(lambda: fleet.has_ended("server") is not None, seconds, "it ends again")
        assert fleet.books.count == stood_at, "nothing is answered that is not on the disk"
        fault.cleared()
        disk.free()
        fleet.start_server()
    return ends


def fill_devices_disks(fleet: Fleet, *, merges_each: int, greedy_s: float, seconds: float) -> None:
    """The disks of some devices have no room left; they go on sending what they learn, in the room of their ballast.

    Then that is taken from them too, for `greedy_s`: what they can't keep they don't send, so that it isn't promised.
    """
    with fleet.fault(f"disk full at {len(fleet.small)} devices", hit=fleet.small) as fault:
        for name in fleet.small:
            fleet.disks[name].fill()
        fault.injected()
        for _ in range(merges_each):
            assert fleet.books.wait_for_each(fleet.small, seconds) is not None, "they go on"
        noticed = "the disk is full"
        fleet.wait_for(lambda: all(fleet.logged(name, noticed) for name in fleet.small), seconds, "they say so")
        for name in fleet.small:
            fleet.disks[name].fill()
        fleet.remain(greedy_s)
        fault.cleared()
        for name in fleet.small:
            fleet.disks[name].free()


def jump_clocks(fleet: Fleet, what: str, names: Sequence[str], seconds: int) -> None:
    """The wall clocks of `names` are suddenly `seconds` off; that is no reason to stop, and stays so."""
    with fleet.fault(what) as fault:
        for name in names:
            fleet.clocks.jump(name, seconds)
        fault.injected()
    expected = time.time() + seconds
    for name in names:
        assert fleet.has_shifted_clock(name), f"{name} reads the machine's clock"
    if "server" in names:
        assert abs(fleet.history()[-1]["time"] - expected) < SOON_S
    for name in set(names) & set(fleet.devices):  # whose receipt may come a moment after the merge
        fleet.wait_for(lambda name=name: abs(_told_at(fleet, name) - expected) < SOON_S, SOON_S, f"{name} logs a merge")


def _told_at(fleet: Fleet, device: str) -> float:
    """When, by its own clock, `device` last logged a merge."""
    *_, line = (line for line in log_lines(fleet.log(device)) if " merged: " in line)
    return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))


def freeze(fleet: Fleet, name: str, *, seconds: float) -> None:
    """A process hangs (SIGSTOP) for so long, then goes on."""
    with fleet.fault(f"{name} hangs") as fault:
        fleet.freeze(name)
        fault.injected()
        fleet.remain(seconds)
        fault.cleared()
        fleet.thaw(name)


def storm(fleet: Fleet, *, seconds: float) -> None:
    """The broker hangs until every device has given it up; then they all connect at once."""
    with fleet.fault("reconnect storm of all devices") as fault:
        with fleet.expect_logged(fleet.devices, NO_PING, seconds):
            fleet.freeze("broker")
            fault.injected()
        fault.cleared()
        fleet.thaw("broker")


def cut_power(fleet: Fleet) -> None:
    """kill -9 of everything there is, at once; then everything is started."""
    with fleet.fault("power cut of everything") as fault:
        for name in ("broker", "server", "gateway-1", *fleet.devices):
            fleet.kill(name)
        fault.injected()
        fault.cleared()
        fleet.start_broker()
        fleet.start_server()
        fleet.start_gateway()
        fleet.restart_all(fleet.devices)
