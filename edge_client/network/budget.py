"""How many bytes may still be published today: `[upload] bytes_per_day`, and connections that cost by the byte."""

import logging
from pathlib import Path
from typing import Final

import psutil

from edge_client.clock import Clock
from pollen import atomic, cbor
from pollen.errors import MessageError

LOG = logging.getLogger(__name__)

HOURS: Final = 24
HOUR_S: Final = 3600.0
MESSAGE_BYTES: Final = 100  # topic, MQTT, TLS and TCP around a payload
VITALS_SHARE: Final = 0.1  # of the budget; updates get the rest, but for what births need
REPLIES_SHARE: Final = 0.95
UNSAVED_SHARE: Final = 0.02  # of the budget that a crash may make forgotten
_FILE_BYTES: Final = 4096


class Budget:
    """Counts what is published in the hour that runs and the 24 before it, by a clock that never jumps.

    With `limit` 0 nothing is counted. The counts are kept in `file`. How long the device was off it can't know, so
    then no time has passed: a restart gives nothing back.
    """

    def __init__(self, limit: int, file: Path, clock: Clock) -> None:
        self.limit = limit
        self._file = file
        self._clock = clock
        self._hours, age = self._read() if limit else ([0], 0.0)  # the hour that runs comes first
        self._begun = clock.monotonic() - age
        self._unsaved = 0

    @property
    def spent(self) -> int:
        """Bytes published in the last day."""
        self._roll()
        return sum(self._hours)

    @property
    def left(self) -> int:
        """Bytes that may still be published; below 0 when the limit was lowered."""
        return self.limit - self.spent

    def allows(self, payload_bytes: int, share: float = 1.0) -> bool:
        """Whether a message of that size stays within `share` of the budget."""
        return not self.limit or self.spent + payload_bytes + MESSAGE_BYTES <= share * self.limit

    def ever_allows(self, payload_bytes: int, share: float = 1.0) -> bool:
        """Whether it would if nothing else had been published."""
        return not self.limit or payload_bytes + MESSAGE_BYTES <= share * self.limit

    def vitals_s(self, payload_bytes: int) -> float:
        """Seconds between vitals of that size that keep them to their share."""
        return HOURS * HOUR_S * (payload_bytes + MESSAGE_BYTES) / (VITALS_SHARE * self.limit) if self.limit else 0.0

    def spend(self, payload_bytes: int) -> None:
        """A message of that size was published."""
        if not self.limit:
            return
        self._roll()
        self._hours[0] += payload_bytes + MESSAGE_BYTES
        self._unsaved += payload_bytes + MESSAGE_BYTES
        if self._unsaved >= UNSAVED_SHARE * self.limit:
            self.save()

    def save(self) -> None:
        """Write the counts down."""
        if not self.limit:
            return
        self._unsaved = 0
        state = {"hours": self._hours, "age_s": self._clock.monotonic() - self._begun}
        try:
            atomic.write(self._file, cbor.encode(state))
        except OSError as error:
            LOG.warning("%s: can't be written (%s); a restart forgets what was sent today", self._file, error)

    def _roll(self) -> None:
        passed = int((self._clock.monotonic() - self._begun) // HOUR_S)
        if passed > 0:
            self._hours = ([0] * min(passed, HOURS + 1) + self._hours)[: HOURS + 1]
            self._begun += passed * HOUR_S

    def _read(self) -> tuple[list[int], float]:
        """The counts on disk, newest first, and the age of the first in seconds."""
        try:
            state = cbor.decode(self._file.read_bytes()[: _FILE_BYTES + 1], _FILE_BYTES)
            hours, age = state["hours"], state["age_s"]
            if not (1 <= len(hours) <= HOURS + 1 and all(type(count) is int and count >= 0 for count in hours)):
                raise ValueError("its counts are none")
            if type(age) is not float or not 0 <= age < float("inf"):
                raise ValueError("its age is none")
        except FileNotFoundError:
            return [0], 0.0
        except (OSError, MessageError, ValueError, TypeError, KeyError) as error:
            LOG.warning("%s: not used (%s); what was sent today begins at 0", self._file, error)
            return [0], 0.0
        return list(hours), age


def interface_of(address: str) -> str:
    """The network interface with this local address; "" when there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address.partition("%")[0] == address.partition("%")[0] for known in addresses):
            return name
    return ""
