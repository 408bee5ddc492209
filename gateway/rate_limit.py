"""How much one device may send: token buckets, so that a device that floods can't starve the others."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal

from gateway.settings import Limits

# Devices whose buckets are kept, the last heard of; one that was silent for long has full buckets in any case.
MOST_DEVICES: Final = 20_000
_BYTES_BURST_S: Final = 2.0
_TOLD_S: Final = 60.0


class _Buckets:
    __slots__ = ("at", "data", "messages", "told_at", "uploads")

    def __init__(self, uploads: float, messages: float, data: float, at: float) -> None:
        self.uploads = uploads
        self.messages = messages
        self.data = data  # bytes
        self.at = at
        self.told_at: float | None = None


class RateLimit:
    """Three buckets a device: uploads, other messages, and bytes of both. A rate of 0 is no limit.

    An upload may empty the bytes' bucket below zero, so that one which is larger than the bucket passes too, and is
    waited for afterwards.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._devices: OrderedDict[str, _Buckets] = OrderedDict()

    def __len__(self) -> int:
        return len(self._devices)

    def change(self, limits: Limits) -> None:
        """Other limits from now on; what devices have used counts on."""
        self._limits = limits

    def refuses(self, device: str, *, upload: bool, size: int) -> Literal["rate", "bytes"] | None:
        """Take from the device's buckets; the one that has too little, if any, and then nothing is taken."""
        limits = self._limits
        buckets = self._filled(device)
        if upload:
            if limits.uploads_per_s and buckets.uploads < 1.0:
                return "rate"
        elif limits.messages_per_s and buckets.messages < 1.0:
            return "rate"
        if limits.bytes_per_s and buckets.data <= 0.0:
            return "bytes"
        if upload:
            buckets.uploads -= 1.0
        else:
            buckets.messages -= 1.0
        buckets.data -= size
        return None

    def may_tell(self, device: str) -> bool:
        """Whether a line in the log on this device is due: once a minute."""
        buckets = self._devices[device]
        if buckets.told_at is not None and self._clock() - buckets.told_at < _TOLD_S:
            return False
        buckets.told_at = self._clock()
        return True

    def limited(self) -> int:
        """How many devices were over a limit within the last minute."""
        now = self._clock()
        return sum(
            buckets.told_at is not None and now - buckets.told_at < _TOLD_S for buckets in list(self._devices.values())
        )

    def _filled(self, device: str) -> _Buckets:
        """The device's buckets, with what has run in since they were last looked at."""
        limits, now = self._limits, self._clock()
        data = _BYTES_BURST_S * limits.bytes_per_s
        buckets = self._devices.get(device)
        if buckets is None:
            buckets = self._devices[device] = _Buckets(limits.upload_burst, limits.message_burst, data, now)
            if len(self._devices) > MOST_DEVICES:
                self._devices.popitem(last=False)
        else:
            self._devices.move_to_end(device)
            elapsed = now - buckets.at
            buckets.uploads = min(limits.upload_burst, buckets.uploads + elapsed * limits.uploads_per_s)
            buckets.messages = min(limits.message_burst, buckets.messages + elapsed * limits.messages_per_s)
            buckets.data = min(data, buckets.data + elapsed * limits.bytes_per_s)
            buckets.at = now
        return buckets
