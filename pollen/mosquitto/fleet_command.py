"""`pollen broker-config`: everything that Mosquitto needs to be the broker of one fleet, as a service."""

import argparse
import datetime
import secrets
import sys
from pathlib import Path
from typing import Final

from pollen.errors import SettingsError
from pollen.mosquitto import fleet_configuration, installation
from pollen.mosquitto.certificate_check import Checked
from pollen.mosquitto.configuration import Tls
from pollen.mosquitto.fleet_configuration import Fleet, check_absolute
from pollen.mosquitto.limits import Limits

_VERSIONS: Final = {"2.0": (2, 0), "2.1": (2, 1)}
_MESSAGE_BYTES: Final = 16 * 1024**2  # what gateway and server take by default
_MOST_MESSAGE_BYTES: Final = 256 * 1024**2 - 2 * 64 * 1024  # MQTT's limit of a packet
_MOST_DEVICES: Final = 1_000_000
_DESCRIPTORS_BESIDES: Final = 256  # listener, log, store, and what a reconnect storm leaves half-open
_SOON_S: Final = 30 * 24 * 3600
_EXAMPLES: Final = """\
examples:
  pollen broker-config --fleet plant --ca ca/ca.pem --crl ca/crl.pem \\
      --certificate ca/issued/broker.pem --key ca/issued/broker.key \\
      --gateway gateway-1 gateway-2 --observer ops --devices 1000 -o /etc/mosquitto/pollen
  pollen broker-config … --at /etc/mosquitto/pollen -o ./for-the-broker    # to be copied to another machine

Every gateway and observer must be named: whoever else has a certificate is a device.
Run it again after a change; who was revoked with `pollen revoke` stays so."""


def main(argv: list[str] | None = None) -> int:
    """Write the configuration and say what to do next; returns the exit code."""
    arguments = _parser().parse_args(argv)
    output: Path = arguments.output.resolve()
    fleet = _fleet(arguments, output)
    checked = fleet_configuration.write(output, fleet)
    sys.stdout.write("\n".join(_next_steps(output, fleet, checked)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen broker-config",
        description="Write Mosquitto's configuration for a fleet: TLS with client certificates, access rules, limits.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleet", required=True, metavar="NAME", help="the fleet, as in everyone's settings")
    for option, what in (
        ("ca", "certificate of the fleet's authority"),
        ("certificate", "certificate of the broker"),
        ("key", "private key of the broker"),
        ("crl", "revocation list of the authority"),
    ):
        parser.add_argument(f"--{option}", required=True, type=Path, metavar="FILE", help=f"{what} (PEM)")
    parser.add_argument("--gateway", nargs="+", action="extend", default=[], metavar="NAME", help="who bridges")
    parser.add_argument("--observer", nargs="+", action="extend", default=[], metavar="NAME", help="who may only read")
    parser.add_argument("--listen", default="0.0.0.0:8883", metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument("--devices", type=int, default=1000, metavar="N", help="sizes the limits; default %(default)s")
    parser.add_argument(
        "--update-bytes", type=int, default=100_000, metavar="N", help="an update's usual size; default %(default)s"
    )
    parser.add_argument(
        "--message-bytes",
        type=int,
        default=_MESSAGE_BYTES,
        metavar="N",
        help="the largest message; default %(default)s",
    )
    parser.add_argument(
        "--at", type=Path, metavar="DIR", help="where the files will be on the broker's machine; default: -o"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("/var/lib/mosquitto"),
        metavar="DIR",
        help="where Mosquitto writes its store and pid file; default %(default)s",
    )
    parser.add_argument(
        "--user", default="mosquitto", help="whom Mosquitto runs as when root starts it; default %(default)s"
    )
    parser.add_argument(
        "--mosquitto", choices=_VERSIONS, help="the broker's version; default: that of the one found here, or 2.0"
    )
    parser.add_argument(
        "--acl-plugin", type=Path, metavar="FILE", help="mosquitto_acl_file.so of Mosquitto 2.1, instead of acl_file"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the folder to write")
    return parser


def _fleet(arguments: argparse.Namespace, output: Path) -> Fleet:
    host, port = _listen(arguments.listen)
    for name, most in (("devices", _MOST_DEVICES), ("message_bytes", _MOST_MESSAGE_BYTES)):
        _check(f"--{name.replace('_', '-')}", getattr(arguments, name), most)
    _check("--update-bytes", arguments.update_bytes, arguments.message_bytes)
    if not arguments.gateway:
        raise SettingsError("--gateway: name at least one; without it nothing reaches the server")
    if not arguments.user.isprintable() or " " in arguments.user or not arguments.user:
        raise SettingsError(f"--user: {arguments.user!r} is no user's name")
    return Fleet(
        name=arguments.fleet,
        tls=Tls(arguments.ca, arguments.certificate, arguments.key, arguments.crl),
        gateways=arguments.gateway,
        observers=arguments.observer,
        host=host,
        port=port,
        limits=Limits.for_fleet(
            arguments.devices,
            len(arguments.gateway) + len(arguments.observer),
            message_bytes=arguments.message_bytes,
            update_bytes=arguments.update_bytes,
        ),
        folder=check_absolute(arguments.at or output, "--at"),
        state=check_absolute(arguments.state, "--state"),
        user=arguments.user,
        version=_version(arguments.mosquitto),
        acl_plugin=check_absolute(arguments.acl_plugin, "--acl-plugin") if arguments.acl_plugin else None,
    )


def _version(given: str | None) -> tuple[int, int]:
    if given is not None:
        return _VERSIONS[given]
    binary = installation.find()
    return (binary and installation.version(binary)) or installation.OLDEST


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(letter.isspace() for letter in host) or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise SettingsError(f"--listen: {text!r} must be HOST:PORT, as 0.0.0.0:8883 or [::]:8883")
    return host, int(port)


def _check(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise SettingsError(f"{option}: {value} must be from 1 to {most}")


def _next_steps(output: Path, fleet: Fleet, checked: Checked) -> list[str]:
    expires = datetime.datetime.fromtimestamp(checked.expires, datetime.UTC)
    version = ".".join(map(str, fleet.version))
    lines = [
        f"Wrote {output}: Mosquitto {version} for the fleet {fleet.name}, at {fleet.host}:{fleet.port}.",
        f"At most {fleet.limits.connections} connections, {fleet.limits.message_bytes} bytes a message.",
        f"Its certificate holds until {expires:%Y-%m-%d}, for {', '.join(checked.names) or 'no host name at all'}.",
    ]
    if checked.expires - datetime.datetime.now(datetime.UTC).timestamp() < _SOON_S:
        lines.append("warning: that is less than a month from now; issue a new one and run this again.")
    lines.append("Next, on the broker's machine, as root:")
    if fleet.folder != output:
        lines.append(f"  copy {output}/ to {fleet.folder}/")
        lines.append(f"  chown -R root:{fleet.user} {fleet.folder} && chmod -R u=rwX,g=rX,o= {fleet.folder}")
    # After a power cut dead connections stay beside new ones for a while.
    descriptors = 2 * (fleet.limits.connections or 0) + _DESCRIPTORS_BESIDES
    return [
        *lines,
        f"  give the service LimitNOFILE={descriptors}: deploy/systemd/mosquitto.service.d/pollen.conf has more",
        f"  ln -sf {fleet.folder}/mosquitto.conf /etc/mosquitto/mosquitto.conf",
        "  systemctl daemon-reload && systemctl restart mosquitto",
        "In gateway.toml of every gateway, and nowhere else, unless they have one (a device that knows it can join):",
        f'  group = "{secrets.token_hex(16)}"',
        f"Lock a device out, at any time: pollen revoke DEVICE (the broker's folder: {fleet.folder}).",
    ]
