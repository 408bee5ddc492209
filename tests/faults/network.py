"""Network namespaces: devices with an interface, routes and TCP of their own, and a cable that can be pulled."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

TUN = Path("/dev/net/tun")


def missing() -> str:
    """What network namespaces need and this machine lacks, "" when nothing."""
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "not root"
    if not TUN.exists():
        return f"{TUN} is not there"
    probe = f"pollen-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces can't be made here"
    ip("netns", "del", probe)
    return ""


def ip(*arguments: str) -> None:
    """ip(8). Raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Namespace:
    """An empty network namespace; whatever is in it goes with it. `number` tells those of one process apart.

    `here` and `there`: addresses of a link's ends in this namespace and in the new one (RFC 2544's test network).
    """

    def __init__(self, number: int) -> None:
        self.name = f"pollen-{os.getpid()}-{number}"
        self.interface = f"p{os.getpid() % 100_000}n{number}"  # at most 15 characters
        place = (os.getpid() % 256, 4 * number)
        self.here, self.there = (f"198.18.{place[0]}.{place[1] + end}" for end in (1, 2))

    def __enter__(self) -> Self:
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.name)

    @property
    def enter(self) -> list[str]:
        """What comes before a command that is to run there; as the mounts stay these, not `ip netns exec`."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def ip(self, *arguments: str) -> None:
        """ip(8) in the namespace."""
        ip("-n", self.name, *arguments)

    def address(self, near: str, far: str) -> None:
        """Give both ends of a link, the interfaces `near` here and `far` there, their addresses; and put them up."""
        ip("addr", "add", f"{self.here}/30", "dev", near)
        self.ip("addr", "add", f"{self.there}/30", "dev", far)
        ip("link", "set", near, "up")
        self.ip("link", "set", far, "up")


class Cable:
    """A pair of virtual Ethernet interfaces (veth(4)) into `namespace`."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._near = namespace.interface
        ip("link", "add", self._near, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        namespace.address(self._near, "eth0")

    def pull(self) -> None:
        """Take the device's end down: no carrier, no route, and nobody is told that a connection has ended."""
        self._namespace.ip("link", "set", "eth0", "down")

    def plug(self) -> None:
        """Put it up again."""
        self._namespace.ip("link", "set", "eth0", "up")
