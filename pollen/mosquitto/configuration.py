"""Mosquitto's configuration for one fleet on this machine: listener, identity, access rules, limits."""

import base64
import hashlib
import os
import pwd
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from pollen import atomic
from pollen.identity import check_name
from pollen.mosquitto import access
from pollen.mosquitto.access import Account
from pollen.mosquitto.limits import Limits

CONFIGURATION: Final = "mosquitto.conf"
PASSWORDS: Final = "passwords"
ACCESS_RULES: Final = "access-rules"
LOG: Final = "mosquitto.log"
PID: Final = "mosquitto.pid"
_SALT_BYTES: Final = 12  # what Mosquitto 2.0 insists on
# mosquitto_passwd's own default. The passwords are long and random, so guessing them is hopeless at any
# count, while the broker's single thread pays for each one when a fleet reconnects all at once.
_ITERATIONS: Final = 101


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates instead of passwords: the PEM files of the fleet's authority, of the broker, and the revocations.

    A client must show a certificate of `ca` that is not in `crl`; its CN is its user name and its client id.
    """

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None

    def resolved(self) -> Self:
        """The same with absolute paths, as the broker's working folder is another one."""
        crl = self.crl.resolve() if self.crl is not None else None
        return replace(
            self, ca=self.ca.resolve(), certificate=self.certificate.resolve(), key=self.key.resolve(), crl=crl
        )

    def lines(self) -> list[str]:
        """As mosquitto.conf has it, after the listener."""
        lines = [
            f"cafile {self.ca}",
            f"certfile {self.certificate}",
            f"keyfile {self.key}",
            # Mosquitto: this or newer.
            "tls_version tlsv1.2",
            "require_certificate true",
            "use_identity_as_username true",
        ]
        return lines + ([f"crlfile {self.crl}"] if self.crl is not None else [])


def write(
    folder: Path, *, fleet: str, accounts: Sequence[Account], port: int, limits: Limits, tls: Tls | None = None
) -> Path:
    """Write configuration, access rules and, without `tls`, the password file to `folder`; returns the configuration's
    path. Who was revoked there stays so.

    Raises SettingsError for names and passwords that can't be used.
    """
    check_name(fleet, "fleet")
    access.check(accounts, certificates=tls is not None)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rules = access.rules(fleet, accounts, certificates=tls is not None, revoked=access.revoked(folder / ACCESS_RULES))
    # atomic.write makes files of mode 0600, owned by who runs the broker.
    atomic.write(folder / ACCESS_RULES, rules.encode())
    if tls is None:
        atomic.write(folder / PASSWORDS, "".join(_password_line(account) for account in accounts).encode())
        identity = [f"password_file {folder / PASSWORDS}"]
    else:
        identity = tls.resolved().lines()
    configuration = folder / CONFIGURATION
    text = render(
        "Written by pollen.mosquitto; changes are overwritten at the next start.",
        # It matters to root only: Mosquitto would change to the user "mosquitto", who may not enter a private folder.
        # It is our own broker in our own folder on loopback, so it stays who started it.
        user=pwd.getpwuid(os.geteuid()).pw_name,
        listener=f"{port} 127.0.0.1",
        identity=[*identity, f"acl_file {folder / ACCESS_RULES}"],
        state=folder,
        limits=limits,
        log=f"file {folder / LOG}",
    )
    atomic.write(configuration, text.encode())
    return configuration


def render(
    comment: str, *, user: str, listener: str, identity: Sequence[str], state: Path, limits: Limits, log: str
) -> str:
    """mosquitto.conf: `identity` are the lines that say who may connect and do what, `state` the folder of the store
    and the pid file. There is one listener."""
    # Mosquitto 2.1 calls acl_file and password_file deprecated but reads them; 2.0 knows nothing else.
    return "\n".join(
        [
            f"# {comment}",
            f"user {user}",
            f"pid_file {state / PID}",
            "",
            f"listener {listener}",
            *limits.listener_lines(),
            "allow_anonymous false",
            *identity,
            "# A client id of one's choice would let any account take over another one's session.",
            "use_username_as_clientid true",
            "",
            "persistence true",
            f"persistence_location {state}",
            "persistence_file mosquitto.db",
            f"autosave_interval {limits.autosave_s}",
            "",
            *limits.lines(),
            "",
            "set_tcp_nodelay true",
            "sys_interval 0",
            f"log_dest {log}",
            *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
            "",
        ]
    )


def _password_line(account: Account) -> str:
    """`name:$7$iterations$salt$hash`: PBKDF2 (RFC 8018, section 5.2) with HMAC-SHA512, as mosquitto_passwd."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", account.password.encode(), salt, _ITERATIONS)
    encoded = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{account.username}:$7${_ITERATIONS}${encoded[0]}${encoded[1]}\n"
