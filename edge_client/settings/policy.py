"""When the device may train."""

import re
from dataclasses import dataclass

from edge_client.settings.limits import at_least


@dataclass(frozen=True, slots=True)
class Policy:
    """`[policy]`: training waits while any of these says so; sampling, predicting and sending go on.

    `max_temperature_celsius` (0: any; it goes on 5 °C below); `max_load`: 1-minute load per core, training's own work
    included (0: any); `min_battery_percent` while on battery (it goes on 5 % above); `while_throttled`: train although
    the board lowers its clock or reports too low a voltage; `quiet_hours`: "22:00-06:00", local time, heeded while the
    clock is known to be right; `duty_cycle`: share of the time that may be spent computing, 0 to 1.
    """

    max_temperature_celsius: float = 80.0
    max_load: float = 0.0
    min_battery_percent: float = 20.0
    while_throttled: bool = False
    quiet_hours: str = ""
    duty_cycle: float = 1.0

    def __post_init__(self) -> None:
        at_least(0.0, max_temperature_celsius=self.max_temperature_celsius, max_load=self.max_load)
        at_least(0.0, min_battery_percent=self.min_battery_percent)
        if not 0.0 < self.duty_cycle <= 1.0:
            raise ValueError(f"duty_cycle = {self.duty_cycle} must be above 0, at most 1")
        if self.quiet_hours and not self.quiet_minutes:
            raise ValueError(f'quiet_hours = {self.quiet_hours!r} must be two times of day, such as "22:00-06:00"')

    @property
    def quiet_minutes(self) -> tuple[int, int] | None:
        """First minute of the day that is quiet, and the first that isn't; None for none, or nonsense."""
        found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", self.quiet_hours)
        if found is None:
            return None
        hour, minute, end_hour, end_minute = map(int, found.groups())
        begin, end = 60 * hour + minute, 60 * end_hour + end_minute
        return None if begin == end else (begin, end)
