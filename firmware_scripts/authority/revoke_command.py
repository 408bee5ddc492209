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
    arguments = parser.parse_args(argv)
    if (arguments.server is None) != (arguments.token_file is None):
        raise SettingsError("--server and --token-file go together; give both or neither")
    token = blocking.read_token(arguments.token_file) if arguments.token_file else ""
    authority = Authority.open(arguments.ca)
    device, crl = arguments.device, authority.crl
    authority.revoke(device)
    role = authority.entries(device)[-1].role
    _tell("authority", f"{device}, a {role}, is revoked in {crl}")
    steps: list[tuple[str, Callable[[], str]]] = []
    if arguments.broker is None:
        _tell("broker", f"NOT YET: give its folder with --broker; a cluster takes {crl} in its own way")
    else:
        steps.append(("broker", lambda: _at_the_broker(arguments.broker, device, crl)))
    if role == "gateway":
        _tell("server", f"NOT YET: copy {crl} to its listen.crl; it is read within a second")
    if arguments.server is None and role == "device":
        # Its will is denied with everything else, and nobody may write its state in its place.
        _tell(
            "server", f"NOT ASKED: takes {device} for online, as its retained birth says, until it is blocked: --server"
        )
    if arguments.server is not None:
        steps.append(("server", lambda: _at_the_server(arguments.server, device, token, authority.ca)))
    failed = False
    for part, take in steps:
        try:
            _tell(part, take())
        except PollenError as error:
            failed = True
            sys.stderr.write(f"error: {part}: {device} is NOT locked out there: {logs.one_line(str(error))}\n")
    return int(failed)


def _tell(part: str, text: str) -> None:
    sys.stdout.write(f"{part:<9}  {text}\n")


def _at_the_broker(folder: Path, name: str, crl: Path) -> str:
    done = revocation.revoke(folder, name, crl)
    if done.pid is not None:
        return f"{name} is denied every topic and can't connect again; Mosquitto, process {done.pid}, was told"
    return (
        f"NOT YET: no Mosquitto runs here with this folder. Copy {folder / ACCESS_RULES} and\n"
        f"           {folder / CRL} to the broker's machine, and run there: sudo systemctl reload mosquitto"
    )


def _at_the_server(url: str, name: str, token: str, ca: Path) -> str:
    changed = blocking.block(url, name, token, ca)
    return f"{name} is blocked at {url}{'' if changed else ' (it was before)'}"
