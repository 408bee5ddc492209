"""Tell systemd how a service is doing (sd_notify(3)), without a library: one datagram on $NOTIFY_SOCKET."""

import os
import socket
import time


def notify(state: str) -> None:
    """Send `state` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=…"); outside systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        datagram.sendto(state.encode(), address)


class Watchdog:
    """Keeps systemd's watchdog fed from a service's main loop, at most twice a watchdog period."""

    def __init__(self) -> None:
        self._period_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        self._last = -float("inf")

    def beat(self) -> None:
        """Call this from the loop that must not hang."""
        now = time.monotonic()
        if self._period_s and now - self._last >= self._period_s:
            self._last = now
            notify("WATCHDOG=1")
