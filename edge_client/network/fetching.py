"""Fetching what a task needs from the broker: one retained message at a time, with a deadline, and waits between
attempts."""

import logging
from typing import Final

from edge_client.clock import Clock
from edge_client.network.session import MqttSession
from pollen.topics import ModelLeaf

LOG = logging.getLogger(__name__)

RETRY_MIN_S: Final = 2.0
RETRY_MAX_S: Final = 60.0


class Fetching:
    """What is being fetched (`leaf`, None for nothing), and when the last failure (`why`) is worth another attempt."""

    def __init__(self, session: MqttSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._deadline = 0.0
        self._retry_at = 0.0
        self._retry_s = RETRY_MIN_S
        self.why = ""
        self.leaf: ModelLeaf | None = None

    @property
    def possible(self) -> bool:
        """Whether there is a connection to fetch anything by."""
        return self._session.connected

    @property
    def overdue(self) -> bool:
        """Whether what is being fetched will not come any more."""
        return self._clock.monotonic() >= self._deadline or not self._session.connected

    @property
    def waits(self) -> bool:
        """Whether the last failure is too recent for another attempt."""
        return self._clock.monotonic() < self._retry_at

    def start(self, leaf: ModelLeaf, seconds: float) -> None:
        """Ask for the newest message of `leaf`; `overdue` after `seconds`."""
        self.leaf = leaf
        self._deadline = self._clock.monotonic() + seconds
        self._session.fetch(leaf)

    def cancel(self) -> ModelLeaf | None:
        """Wait no longer for what is being fetched; returns what it was, if anything."""
        leaf, self.leaf = self.leaf, None
        if leaf is not None:
            self._session.cancel(leaf)
        return leaf

    def came(self) -> None:
        """What was being fetched is here."""
        self.leaf = None

    def done(self) -> None:
        """A task needs nothing more, so the next failure is the first of its kind."""
        self.cancel()
        self._retry_s = RETRY_MIN_S

    def put_off(self, why: str) -> None:
        """Make the next attempt later, and later each time."""
        LOG.warning("%s; trying again in %.0f s", why, self._retry_s)
        self.leaf, self.why = None, why
        self._retry_at = self._clock.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def rest(self) -> None:
        """Attempt nothing for the longest of these waits."""
        self._retry_at = self._clock.monotonic() + RETRY_MAX_S

    def hurry(self) -> None:
        """Attempt it at once."""
        self._retry_at = 0.0
