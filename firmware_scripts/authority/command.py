"""`pollen ca`: make a fleet's authority, issue certificates, show and renew."""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from firmware_scripts.authority.authority import ISSUED_DAYS, OWN_DAYS, Authority
from firmware_scripts.authority.certificates import ROLES
from firmware_scripts.authority.registry import Entry

SOON_DAYS = 30

EXAMPLES = """examples:
  pollen ca init garden --dir ca
  pollen ca issue broker    --role broker --host broker.example --dir ca
  pollen ca issue server    --role server --host server.example --host 192.0.2.7 --dir ca
  pollen ca issue gateway-1 --role gateway --dir ca
  pollen ca issue pi-01 pi-02 pi-03 --role device --dir ca
  pollen ca list --dir ca
  pollen ca crl --dir ca              # write crl.pem again

A name is a certificate's CN: a device's name in every topic, a gateway's in gateway.toml. Each key is in
DIR/issued/NAME.key, and belongs on that machine only. `pollen revoke` locks a device out.
docs/security.md has the whole of it.
"""


def main(argv: list[str]) -> int:
    """Run `pollen ca`; returns 0. Raises SettingsError and PollenError."""
    arguments = _parser().parse_args(argv)
    match arguments.command:
        case "init":
            _init(arguments.dir, arguments.fleet, arguments.days)
        case "issue":
            _issue(arguments)
        case "list":
            _list(Authority.open(arguments.dir), as_json=arguments.json)
        case "crl":
            authority = Authority.open(arguments.dir)
            authority.renew_crl(arguments.days)
            print(f"{authority.crl}: written, good until {authority.crl_until():%Y-%m-%d}")
            print(
                "Now copy it to the broker's folder and to listen.crl of the server; the broker reads it at a SIGHUP."
            )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen ca",
        description="The fleet's own certificate authority: a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="make the authority of a fleet, in a new folder")
    init.add_argument("fleet", metavar="FLEET")
    init.add_argument("--days", type=int, default=OWN_DAYS, help=f"how long it is valid ({OWN_DAYS})")
    issue = commands.add_parser("issue", help="make keys and certificates")
    issue.add_argument("names", nargs="+", metavar="NAME")
    issue.add_argument("--role", choices=ROLES, required=True)
    issue.add_argument(
        "--host", action="append", default=[], help="by which a server or broker is dialled; may be given again"
    )
    issue.add_argument("--days", type=int, default=ISSUED_DAYS, help=f"how long they are valid ({ISSUED_DAYS})")
    issue.add_argument("--replace", action="store_true", help="revoke the certificate that NAME has")
    shown = commands.add_parser("list", help="show what was issued, until when it is valid, and what is revoked")
    shown.add_argument("--json", action="store_true")
    crl = commands.add_parser("crl", help="write the revocation list again")
    crl.add_argument("--days", type=int, help="until when it must be renewed (as long as the authority is valid)")
    for command in (init, issue, shown, crl):
        command.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the authority's folder")
    return parser


def _init(folder: Path, fleet: str, days: int) -> None:
    authority = Authority.create(folder, fleet, days=days)
    print(f"{authority.ca}: every part of the fleet {fleet} trusts this, until {authority.until:%Y-%m-%d}")
    print(f"{authority.crl}: what is revoked, for the broker and the server")
    print(
        f"{folder / 'ca.key'}: WHOEVER HAS THIS FILE CAN BE ANYONE IN THE FLEET. It has no password. Keep the folder\n"
        "on a machine that nobody else logs in to, never on a device, gateway, broker or server, and a copy of it\n"
        "offline: without it no certificate can be issued, renewed or revoked."
    )


def _issue(arguments: argparse.Namespace) -> None:
    authority = Authority.open(arguments.dir)
    for name in arguments.names:
        revoked_before = any(entry.revoked_at is not None for entry in authority.entries(name))
        issued = authority.issue(
            name, arguments.role, hosts=arguments.host, days=arguments.days, replace=arguments.replace
        )
        print(f"{issued.certificate} and {issued.key}: {name}, {issued.role}, until {issued.not_after:%Y-%m-%d}")
        if revoked_before and not arguments.replace:
            print(
                f"{name} was revoked before: broker and server refuse that name until\n"
                f"  pollen revoke {name} --readmit --ca {arguments.dir} --broker … --server …"
            )
    if arguments.replace:
        print(
            f"{authority.crl}: what was replaced is revoked; copy it to the broker's folder and the server's listen.crl"
        )


def _list(authority: Authority, *, as_json: bool) -> None:
    entries = list({entry.name: entry for entry in authority.entries()}.values())
    now = datetime.now(UTC)
    number, made = authority.crl_made()
    if as_json:
        rows = [
            {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(entry).items()}
            | {"serial": f"{entry.serial:x}", "state": _state(entry, now)}
            for entry in entries
        ]
        about = {
            "fleet": authority.fleet,
            "not_after": authority.until.isoformat(),
            "crl_number": number,
            "crl_made": made.isoformat(),
            "crl_next_update": authority.crl_until().isoformat(),
            "certificates": rows,
        }
        json.dump(about, sys.stdout, indent=2)
        print()
        return
    width = max([4, *(len(entry.name) for entry in entries)])
    print(f"{'name':<{width}}  role      serial    until       state")
    for entry in entries:
        print(
            f"{entry.name:<{width}}  {entry.role:<8}  {f'{entry.serial:x}'[:8]}  {entry.not_after:%Y-%m-%d}"
            f"  {_state(entry, now)}"
        )
    lists = f"revocation list {number}, of {made:%Y-%m-%d %H:%M} UTC"
    for what, until in ((f"authority of {authority.fleet}", authority.until), (lists, authority.crl_until())):
        print(f"{what}: until {until:%Y-%m-%d}{_warning(until, now)}")


def _state(entry: Entry, now: datetime) -> str:
    if entry.revoked_at is not None:
        return f"revoked {entry.revoked_at:%Y-%m-%d}"
    if entry.not_after <= now:
        return "expired"
    return "expires soon" if entry.not_after - now < timedelta(days=SOON_DAYS) else "valid"


def _warning(until: datetime, now: datetime) -> str:
    if until <= now:
        return ", EXPIRED: the broker turns everyone away"
    return ", RENEW IT NOW" if until - now < timedelta(days=SOON_DAYS) else ""
