"""May the device train now, and if not, why: `[policy]` of the settings against what the machine says of itself."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client import settings
from edge_client.clock import Clock

CHECK_S: Final = 5.0  # between two looks at the machine
COOLER_CELSIUS: Final = 5.0  # below the limit, until training goes on
FULLER_PERCENT: Final = 5.0
BURST_S: Final = 60.0  # of idleness that can be made up for
VCGENCMD_S: Final = 2.0
BELIEVED_CELSIUS: Final = 200.0  # a sensor that gives more is broken
# Bits 0 to 3 of the Raspberry Pi's get_throttled are of this moment, 16 to 19 of the time since it was started.
THROTTLED: Final = ("the voltage is too low", "the clock is capped", "the board is throttled", "the board is hot")


@dataclass(frozen=True, slots=True)
class Hold:
    """Why training waits: `code` for vitals (0: it needn't), `why` in words."""

    code: int = 0
    why: str = ""


FREE: Final = Hold()


class Policy:
    """`hold` says why training must wait. The machine is looked at every few seconds only, below `root`, "/" but in
    tests."""

    def __init__(self, limits: settings.Policy, clock: Clock, root: Path = Path("/")) -> None:
        self._limits = limits
        self._clock = clock
        self._sys = root / "sys"
        self._load = root / "proc" / "loadavg"
        self._vcgencmd = shutil.which("vcgencmd") if root == Path("/") else None
        self._looked = float("-inf")
        self._machine = FREE
        self._allowance = self._largest_allowance = BURST_S * limits.duty_cycle
        self._refilled = clock.monotonic()

    @property
    def hold(self) -> Hold:
        """Why training must wait, `FREE` when it may go on."""
        now = self._clock.monotonic()
        if now - self._looked >= CHECK_S:
            self._looked = now
            self._machine = self._look()
        self._allowance += (now - self._refilled) * self._limits.duty_cycle
        self._allowance = min(self._allowance, self._largest_allowance)
        self._refilled = now
        if self._machine is FREE and self._allowance <= 0:
            return Hold(6, f"the duty cycle of {100 * self._limits.duty_cycle:g} % is used up")
        return self._machine

    def spent(self, seconds: float) -> None:
        """So many seconds were computed: the duty cycle is a bucket that they empty and that time fills."""
        if self._limits.duty_cycle < 1.0:
            self._allowance -= seconds

    def _look(self) -> Hold:
        held = self._machine.code
        for code, reason in enumerate(
            (
                self._too_hot(was=held == 1),
                self._throttled(),
                self._loaded(),
                self._discharged(was=held == 4),
                self._quiet(),
            ),
            start=1,
        ):
            if reason:
                return Hold(code, reason)
        return FREE

    def _too_hot(self, *, was: bool) -> str:
        limit = self._limits.max_temperature_celsius
        if not limit:
            return ""
        zones = list(_numbers(self._sys, "class/thermal/thermal_zone*/temp"))
        zones = zones or list(_numbers(self._sys, "class/hwmon/hwmon*/temp*_input"))
        hottest = max((zone / 1000 for zone in zones if zone < 1000 * BELIEVED_CELSIUS), default=0.0)
        again = limit - COOLER_CELSIUS
        if hottest <= (again if was else limit):
            return ""
        return f"the temperature is {hottest:.0f} °C (limit {limit:g}); training goes on at {again:g} °C"

    def _throttled(self) -> str:
        if self._limits.while_throttled:
            return ""
        bits = next(_numbers(self._sys, "devices/platform/soc/soc:firmware/get_throttled", base=16), None)
        if bits is None and self._vcgencmd is not None:
            bits = self._ask_vcgencmd(self._vcgencmd)
        if bits is None:  # Linux's own driver knows of the voltage only
            for name in self._sys.glob("class/hwmon/hwmon*/name"):
                if _text(name) == "rpi_volt":
                    bits = next(_numbers(name.parent, "in0_lcrit_alarm"), None)
        reasons = [reason for bit, reason in enumerate(THROTTLED) if (bits or 0) >> bit & 1]
        return " and ".join(reasons)

    def _ask_vcgencmd(self, program: str) -> int | None:
        try:
            said = subprocess.run(
                [program, "get_throttled"], capture_output=True, text=True, timeout=VCGENCMD_S, check=True
            ).stdout
            return int(said.strip().removeprefix("throttled="), 16)
        except (OSError, ValueError, subprocess.SubprocessError):  # no right to ask, or no Raspberry Pi
            self._vcgencmd = None
            return None

    def _loaded(self) -> str:
        limit = self._limits.max_load
        if not limit:
            return ""
        try:
            load = float(_text(self._load).split()[0]) / (os.cpu_count() or 1)
        except (ValueError, IndexError):
            return ""
        return f"the load is {load:.2f} per core, above {limit:g}" if load > limit else ""

    def _discharged(self, *, was: bool) -> str:
        limit = self._limits.min_battery_percent
        for supply in self._sys.glob("class/power_supply/*"):
            # A mouse's battery has the scope "Device".
            if _text(supply / "type") not in ("Battery", "UPS") or _text(supply / "scope") == "Device":
                continue
            if _text(supply / "status") != "Discharging":
                continue
            again = min(limit + FULLER_PERCENT, 100.0) if limit else 0.0
            for percent in _numbers(supply, "capacity"):
                if percent < (again if was else limit):
                    return f"the battery is at {percent:.0f} %; training goes on at {again:g} %, or on mains"
        return ""

    def _quiet(self) -> str:
        hours = self._limits.quiet_minutes
        if not hours or not self._clock.synchronised():
            return ""
        local = time.localtime(self._clock.wall())
        minute = 60 * local.tm_hour + local.tm_min
        begin, end = hours
        within = begin <= minute < end if begin < end else minute >= begin or minute < end
        return f"these are the quiet hours, {self._limits.quiet_hours}" if within else ""


def _text(path: Path) -> str:
    """What a file of the kernel says; "" when it isn't there or its driver gives an error."""
    try:
        return path.read_text("ascii", "replace")[:64].strip()
    except OSError:
        return ""


def _numbers(folder: Path, pattern: str, base: int = 10) -> Iterator[int]:
    for path in folder.glob(pattern):
        try:
            yield int(_text(path), base)
        except ValueError:
            continue
