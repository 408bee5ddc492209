"""Rules of TLS between the parts of a fleet: where it must be, and how a certificate names a role."""

from pathlib import Path
from typing import Final

from pollen.broker import LOOPBACK

ROLE_URI: Final = "urn:pollen:role:"


def role_uri(role: str) -> str:
    """The URI among the alternative names of a certificate for `role`: device, gateway, server, broker or observer."""
    return ROLE_URI + role


def check_endpoint(
    host: str, port: int, ca: Path | None, certificate: Path | None, key: Path | None, *, port_zero: bool = False
) -> None:
    """Check an address and its PEM files, for listening as for dialling; `port_zero` allows port 0, a free one.

    Raises ValueError naming the field: a port out of range, some of the three files without the others, or a host
    that is not loopback without them.
    """
    least = 0 if port_zero else 1
    if not least <= port <= 65535:
        raise ValueError(f"port = {port} must be from {least} to 65535")
    given = [file is not None for file in (ca, certificate, key)]
    if any(given) != all(given):
        raise ValueError("ca, certificate and key belong together; set all three or none")
    if host not in LOOPBACK and not all(given):
        raise ValueError(f"host = {host!r} is not loopback: set ca, certificate and key for mutual TLS")
