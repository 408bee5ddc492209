"""When the device may train: files as the kernel writes them, in a folder of the test's."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from edge_client import settings
from edge_client.training.policy import BURST_S, CHECK_S, FREE, Policy
from tests.edge_client.clock import VirtualClock

ZONE = "sys/class/thermal/thermal_zone0/temp"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def put(root: Path, **files: Any) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def looks(policy: Policy, clock: VirtualClock) -> tuple[int, str]:
    """What the policy finds at its next look at the machine."""
    clock.now += CHECK_S
    return policy.hold.code, policy.hold.why


def test_a_machine_that_says_nothing_may_train(tmp_path: Path, clock: VirtualClock) -> None:
    limits = settings.Policy(max_load=0.5)
    assert Policy(limits, clock, tmp_path).hold is FREE


def test_heat_stops_training_until_it_is_5_degrees_below(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(max_temperature_celsius=80), clock, tmp_path)
    put(tmp_path, **{ZONE: 45000, "sys/class/thermal/thermal_zone1/temp": 80000})
    assert looks(policy, clock) == (0, "")
    put(tmp_path, **{"sys/class/thermal/thermal_zone1/temp": 83216})
    assert looks(policy, clock) == (1, "the temperature is 83 °C (limit 80); training goes on at 75 °C")
    put(tmp_path, **{"sys/class/thermal/thermal_zone1/temp": 75001})
    assert looks(policy, clock)[0] == 1
    put(tmp_path, **{"sys/class/thermal/thermal_zone1/temp": 75000})
    assert looks(policy, clock) == (0, "")
    put(tmp_path, **{"sys/class/thermal/thermal_zone1/temp": 80000})
    assert looks(policy, clock) == (0, "")


def test_a_board_without_thermal_zones_is_asked_through_hwmon(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(max_temperature_celsius=60), clock, tmp_path)
    put(tmp_path, **{"sys/class/hwmon/hwmon0/temp1_input": 50000, "sys/class/hwmon/hwmon2/temp3_input": 61000})
    assert looks(policy, clock)[0] == 1


def test_no_limit_no_hold(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(max_temperature_celsius=0, while_throttled=True), clock, tmp_path)
    put(tmp_path, **{ZONE: 110000, FIRMWARE: "5"})
    assert looks(policy, clock) == (0, "")


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        ("0", ""),
        ("50000", ""),  # only since the start
        ("1", "the voltage is too low"),
        ("50005", "the voltage is too low and the board is throttled"),
        ("a", "the clock is capped and the board is hot"),
    ],
)
def test_the_firmwares_bits_of_this_moment_count(tmp_path: Path, clock: VirtualClock, bits: str, why: str) -> None:
    put(tmp_path, **{FIRMWARE: bits})
    assert Policy(settings.Policy(), clock, tmp_path).hold.why == why


def test_where_only_the_kernels_voltage_alarm_is_there_it_is_heeded(tmp_path: Path, clock: VirtualClock) -> None:
    put(tmp_path, **{"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": 1})
    put(tmp_path, **{"sys/class/hwmon/hwmon0/name": "cpu_thermal"})
    policy = Policy(settings.Policy(), clock, tmp_path)
    assert looks(policy, clock) == (2, "the voltage is too low")
    put(tmp_path, **{"sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0})
    assert looks(policy, clock) == (0, "")


def test_vcgencmd_is_asked_where_there_are_no_files_and_left_alone_once_it_fails(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "vcgencmd"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$1" >> "$0.asked"\ncat "$0.says"\n')
    program.chmod(0o755)
    says = program.with_suffix(".says")
    says.write_text("throttled=0x50005\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    root = Path("/")
    if (root / FIRMWARE).exists():
        pytest.skip("this is a Raspberry Pi with the file that comes first")
    policy = Policy(settings.Policy(max_temperature_celsius=0), clock, root)
    assert looks(policy, clock) == (2, "the voltage is too low and the board is throttled")
    says.write_text("throttled=0x50000\n")
    assert looks(policy, clock)[0] == 0
    says.write_text("VCHI initialization failed\n")
    for _ in range(3):
        assert looks(policy, clock)[0] == 0
    assert program.with_suffix(".asked").read_text() == "get_throttled\n" * 3


def test_load_is_counted_per_core(tmp_path: Path, clock: VirtualClock) -> None:
    cores = os.cpu_count() or 1
    policy = Policy(settings.Policy(max_load=0.8), clock, tmp_path)
    put(tmp_path, **{"proc/loadavg": f"{0.79 * cores:.2f} 9.00 9.00 1/200 4242"})
    assert looks(policy, clock)[0] == 0
    put(tmp_path, **{"proc/loadavg": f"{0.9 * cores:.2f} 0.00 0.00 1/200 4242"})
    assert looks(policy, clock) == (3, "the load is 0.90 per core, above 0.8")


def battery(root: Path, percent: int, status: str = "Discharging", name: str = "BAT0", **more: str) -> None:
    folder = f"sys/class/power_supply/{name}"
    files = {"type": "Battery", "status": status, "capacity": percent, **more}
    put(root, **{f"{folder}/{file}": content for file, content in files.items()})


def test_a_battery_stops_training_until_it_is_5_percent_fuller_or_charged(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(min_battery_percent=20), clock, tmp_path)
    put(tmp_path, **{"sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": 0})
    battery(tmp_path, 20)
    assert looks(policy, clock) == (0, "")
    battery(tmp_path, 19)
    assert looks(policy, clock) == (4, "the battery is at 19 %; training goes on at 25 %, or on mains")
    battery(tmp_path, 24)
    assert looks(policy, clock)[0] == 4
    battery(tmp_path, 19, "Charging")
    assert looks(policy, clock) == (0, "")
    battery(tmp_path, 24)
    assert looks(policy, clock) == (0, "")


def test_a_mouses_battery_does_not_count(tmp_path: Path, clock: VirtualClock) -> None:
    battery(tmp_path, 3, name="hidpp_battery_0", scope="Device")
    assert Policy(settings.Policy(), clock, tmp_path).hold is FREE


@pytest.mark.parametrize(
    ("hours", "at", "quiet"),
    [
        ("22:00-06:00", "21:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("08:30-17:00", "12:00", True),
        ("08:30-17:00", "08:29", False),
        ("08:30-17:00", "17:00", False),
    ],
)
def test_quiet_hours_are_local_time(tmp_path: Path, clock: VirtualClock, hours: str, at: str, quiet: bool) -> None:
    clock.wall_now = time.mktime(time.strptime(f"2026-05-10 {at}", "%Y-%m-%d %H:%M"))
    policy = Policy(settings.Policy(quiet_hours=hours), clock, tmp_path)
    assert looks(policy, clock) == ((5, f"these are the quiet hours, {hours}") if quiet else (0, ""))
    clock.known = None
    assert looks(policy, clock) == (0, ""), "who doesn't know the time can't keep it"


@pytest.mark.parametrize("hours", ["22-6", "24:00-06:00", "22:00-22:00", "22:60-06:00", "night"])
def test_quiet_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ValueError, match="quiet_hours"):
        settings.Policy(quiet_hours=hours)


def test_the_duty_cycle_is_held_over_minutes_and_idleness_is_made_up_for(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(duty_cycle=0.25), clock, tmp_path)
    computed = 0.0
    started = clock.now
    while clock.now - started < 1000:
        if policy.hold is FREE:
            clock.now += 0.02
            computed += 0.02
            policy.spent(0.02)
        else:
            assert policy.hold.why == "the duty cycle of 25 % is used up"
            clock.now += 0.25
    assert computed == pytest.approx(0.25 * (1000 + BURST_S), rel=0.01)
    clock.now += 10_000
    assert policy.hold is FREE
    policy.spent(0.25 * BURST_S + 0.01)
    assert policy.hold.code == 6, "an idle night allows no more than a minute's idleness does"


def test_a_full_duty_cycle_never_holds(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(), clock, tmp_path)
    policy.spent(1e6)
    assert policy.hold is FREE


def test_the_machine_is_looked_at_every_few_seconds_only(tmp_path: Path, clock: VirtualClock) -> None:
    policy = Policy(settings.Policy(), clock, tmp_path)
    assert policy.hold is FREE
    put(tmp_path, **{ZONE: 99000})
    clock.now += 0.9 * CHECK_S
    assert policy.hold is FREE
    clock.now += 0.2 * CHECK_S
    assert policy.hold.code == 1


@pytest.mark.parametrize("content", ["", "hot", "9" * 400, "\x00\xff", "-1"])
def test_files_that_say_nothing_usable_hold_nothing(tmp_path: Path, clock: VirtualClock, content: str) -> None:
    files = [FIRMWARE, "sys/class/hwmon/hwmon0/name", "sys/class/power_supply/BAT0/capacity", "proc/loadavg"]
    put(tmp_path, **dict.fromkeys(files, content))
    (tmp_path / ZONE).mkdir(parents=True)  # reading it is an error, as with a driver that is busy
    assert Policy(settings.Policy(max_load=0.9), clock, tmp_path).hold.code in (0, 2)
