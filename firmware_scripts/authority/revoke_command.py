"""`pollen revoke`: lock a device out, everywhere at once, without restarting anything."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from firmware_scripts.authority import blocking
from firmware_scripts.authority.authority import Authority
from pollen import logs
from pollen.errors import PollenError, SettingsError
from pollen.mosquitto import revocation
from pollen.mosquitto.configuration import ACCESS_RULES
from pollen.mosquitto.fleet_configuration import CRL

EXAMPLES = """examples:
  pollen revoke pi-01 --ca ca --broker /etc/mosquitto/pollen
  pollen revoke pi-01 --ca ca --broker broker --server https://server.example:7080 --token-file token

DIR of --broker is the folder of `pollen broker-config`. Where the broker is on another machine, give the folder that
was copied there; what to copy again is printed.

A device that is connected has no rights from that moment on, and can't connect again. What was merged stays merged.
With --server its updates that are still on their way are refused too. Doing it twice does no harm.

A name that was revoked comes back with a new certificate:
  pollen ca issue pi-01 --role device --dir ca
  pollen revoke pi-01 --readmit --ca ca --broker /etc/mosquitto/pollen
"""


def main(argv: list[str]) -> int:
    """Run `pollen revoke`; returns 0, or 1 when a part of it failed. Raises SettingsError and PollenError."""
    parser = argparse.ArgumentParser(
        prog="pollen revoke",
        description="Revoke a device's certificate, and make broker and server act on it at once.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", metavar="DEVICE", help="or a gateway or observer")
    parser.add_argument("--ca", type=Path, required=True, metavar="DIR", help="the authority's folder")
    parser.add_argument("--broker", type=Path, metavar="DIR", help="the broker's folder")
    parser.add_argument("--server", metavar="URL", help="block the device there too: the server's [http] address")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds http.token of the server")
    parser.add_argument("--readmit", action="store_true", help="the other way: let its new certificate in")
    arguments = parser.parse_args(argv)
    if (arguments.server is None) != (arguments.token_file is None):
        raise SettingsError("--server and --token-file go together; give both or neither")
    token = blocking.read_token(arguments.token_file) if arguments.token_file else ""
    authority = Authority.open(arguments.ca)
    device, readmit = arguments.device, arguments.readmit
    _tell("authority", (_standing if readmit else _revoke)(authority, device))
    role = authority.entries(device)[-1].role
    steps: list[tuple[str, Callable[[], str]]] = []
    if arguments.broker is None:
        _tell("broker", f"NOT YET: give its folder with --broker; a cluster takes {authority.crl} in its own way")
    else:
        steps.append(("broker", lambda: _at_the_broker(arguments.broker, device, authority, readmit=readmit)))
    if role == "gateway" and not readmit:
        _tell("server", f"NOT YET: copy {authority.crl} to its listen.crl; it is read within a second")
    if arguments.server is None and role == "device":
        # Its will is denied with everything else, and nobody may write its state in its place.
        told = (
            f"if it is blocked there, unblock {device}"
            if readmit
            else f"takes {device} for online, as its retained birth says, until it is blocked"
        )
        _tell("server", f"NOT ASKED: {told}: --server")
    if arguments.server is not None:
        steps.append(("server", lambda: _at_the_server(arguments.server, device, token, authority.ca, readmit=readmit)))
    failed = False
    for part, take in steps:
        try:
            _tell(part, take())
        except PollenError as error:
            failed = True
            wrong = "let in" if readmit else "locked out"
            sys.stderr.write(f"error: {part}: {device} is NOT {wrong} there: {logs.one_line(str(error))}\n")
    return int(failed)


def _revoke(authority: Authority, name: str) -> str:
    authority.revoke(name)
    return f"{name}, a {authority.entries(name)[-1].role}, is revoked in {authority.crl}"


def _standing(authority: Authority, name: str) -> str:
    entry = next((entry for entry in authority.entries(name) if entry.revoked_at is None), None)
    if entry is None:
        raise PollenError(f"{name!r} has no certificate that stands; make one first: pollen ca issue {name}")
    return f"{name}, a {entry.role}, has a certificate until {entry.not_after:%Y-%m-%d}"


def _tell(part: str, text: str) -> None:
    sys.stdout.write(f"{part:<9}  {text}\n")


def _at_the_broker(folder: Path, name: str, authority: Authority, *, readmit: bool) -> str:
    done = (revocation.readmit if readmit else revocation.revoke)(folder, name, authority.crl, authority.ca)
    effect = "may connect with its new certificate" if readmit else "is denied every topic and can't connect again"
    if done.pid is not None:
        return f"{name} {effect}; Mosquitto, process {done.pid}, was told"
    if not done.copy:
        return (
            f"{name} {effect} from Mosquitto's next start on: none runs here with this folder.\n"
            "           If one does, in a container say, have it reload: docker compose kill -s HUP broker"
        )
    return (
        f"NOT YET: no Mosquitto runs here with this folder. Copy {folder / ACCESS_RULES} and\n"
        f"           {folder / CRL} to the broker's machine, and run there: sudo systemctl reload mosquitto"
    )


def _at_the_server(url: str, name: str, token: str, ca: Path, *, readmit: bool) -> str:
    changed = blocking.set_blocked(url, name, token, ca, blocked=not readmit)
    return f"{name} is {'not ' if readmit else ''}blocked at {url}{'' if changed else ' (it was before)'}"
