"""Blocking a device from the web: done, and written down where it can be found later."""

import logging
from collections.abc import Callable

from server.blocked import BlockedDevices

LOG = logging.getLogger("pollen.server.web")


class Blocking:
    """`note(event, device, by)` is called after a device has been blocked or unblocked. Any thread may use it."""

    def __init__(self, blocked: BlockedDevices, note: Callable[[str, str, str], None]) -> None:
        self._blocked = blocked
        self._note = note

    @property
    def names(self) -> frozenset[str]:
        """Who is blocked now."""
        return self._blocked.names

    def block(self, device: str, by: str) -> bool:
        """Block `device`, as `by` (an address) asked; whether it was not before. Raises StoreError, SettingsError."""
        return self._noted(self._blocked.block(device), "block", device, by)

    def unblock(self, device: str, by: str) -> bool:
        """Let `device` in again; whether it was blocked. Raises StoreError."""
        return self._noted(self._blocked.unblock(device), "unblock", device, by)

    def _noted(self, changed: bool, event: str, device: str, by: str) -> bool:
        if changed:
            LOG.warning("%s: %sed, asked for by %s with the token", device, event, by)
            self._note(event, device, by)
        return changed
