"""Mosquitto's configuration for one fleet on this machine: listener, passwords, access rules, limits."""

import base64
import hashlib
import os
import pwd
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pollen import atomic, topics
from pollen.errors import SettingsError
from pollen.identity import check_name
from pollen.settings import SECRET

Role = Literal["device", "gateway", "observer"]

CONFIGURATION: Final = "mosquitto.conf"
PASSWORDS: Final = "passwords"
ACCESS_RULES: Final = "access-rules"
LOG: Final = "mosquitto.log"
_SALT_BYTES: Final = 12  # what Mosquitto 2.0 insists on
# mosquitto_passwd's own default. The passwords are long and random, so guessing them is hopeless at any
# count, while the broker's single thread pays for each one when a fleet reconnects all at once.
_ITERATIONS: Final = 101
_PACKET_OVERHEAD: Final = 64 * 1024  # topic and properties around a payload


@dataclass(frozen=True, slots=True)
class Account:
    """Who may connect; the user name is also the MQTT client id and, for a device, its name in every topic."""

    username: str
    password: str = field(repr=False, metadata=SECRET)
    role: Role


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the broker's memory.

    `message_bytes`: the largest payload, announced in CONNACK; it costs the sender its connection to exceed it.
    Generous, so that a device whose update is too large for the fleet hears so in a receipt. `queued_messages`,
    `queued_bytes`: how much may wait for one client, a gateway that is away above all; what exceeds it is
    dropped silently, and comes again from the device's outbox. `inflight`: unacknowledged QoS 1 messages towards
    a client that set no Receive Maximum, and the Receive Maximum that Mosquitto announces. `autosave_s`: seconds
    between two writes of the store; a killed broker loses what came since.
    """

    message_bytes: int = 64 * 1024 * 1024
    queued_messages: int = 100_000
    queued_bytes: int = 512 * 1024 * 1024
    inflight: int = 1000
    autosave_s: int = 60


def write(folder: Path, *, fleet: str, accounts: Sequence[Account], port: int, limits: Limits) -> Path:
    """Write configuration, password file and access rules to `folder`; returns the configuration's path.

    Raises SettingsError for names and passwords that can't be used.
    """
    check_name(fleet, "fleet")
    _check(accounts)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # atomic.write makes files of mode 0600, owned by who runs the broker.
    atomic.write(folder / PASSWORDS, "".join(_password_line(account) for account in accounts).encode())
    atomic.write(folder / ACCESS_RULES, "\n".join(_rules(fleet, account) for account in accounts).encode())
    configuration = folder / CONFIGURATION
    atomic.write(configuration, _configuration(folder, port, limits).encode())
    return configuration


def _check(accounts: Sequence[Account]) -> None:
    seen: set[str] = set()
    for account in accounts:
        check_name(account.username, "account")
        if account.username in seen:
            raise SettingsError(f"account {account.username!r} is there twice; give each client its own")
        if not account.password:
            raise SettingsError(f"account {account.username!r} has no password; give it one")
        seen.add(account.username)


def _configuration(folder: Path, port: int, limits: Limits) -> str:
    # Mosquitto 2.1 calls acl_file and password_file deprecated but reads them; 2.0 knows nothing else.
    # `user` matters to root only: Mosquitto would change to the user "mosquitto", who may not enter a private
    # folder. It is our own broker in our own folder on loopback, so it stays who started it.
    return f"""\
# Written by pollen.mosquitto; changes are overwritten at the next start.
user {pwd.getpwuid(os.geteuid()).pw_name}
listener {port} 127.0.0.1

allow_anonymous false
password_file {folder / PASSWORDS}
acl_file {folder / ACCESS_RULES}
# A client id of one's choice would let any account take over another one's session.
use_username_as_clientid true

persistence true
persistence_location {folder}
persistence_file mosquitto.db
autosave_interval {limits.autosave_s}

# Announced in CONNACK, so that a client can look before it publishes. No message_size_limit: Mosquitto 2.0 answers
# what exceeds that with a reason that MQTT 5 doesn't allow in a PUBACK, and paho drops the connection over it.
max_packet_size {limits.message_bytes + _PACKET_OVERHEAD}
max_inflight_messages {limits.inflight}
max_queued_messages {limits.queued_messages}
max_queued_bytes {limits.queued_bytes}

set_tcp_nodelay true
sys_interval 0
log_dest file {folder / LOG}
log_type error
log_type warning
log_type notice
log_type information
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""


def _password_line(account: Account) -> str:
    """`name:$7$iterations$salt$hash`: PBKDF2 (RFC 8018, section 5.2) with HMAC-SHA512, as mosquitto_passwd."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", account.password.encode(), salt, _ITERATIONS)
    encoded = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{account.username}:$7${_ITERATIONS}${encoded[0]}${encoded[1]}\n"


def _rules(fleet: str, account: Account) -> str:
    """The access rules of one account. Mosquitto denies what no rule grants.

    One block an account and no `pattern` lines: a pattern would also hold for observers and gateways.
    """
    models = f"{topics.ROOT}/{fleet}/m/#"
    match account.role:
        case "device":
            writes = [topics.device(fleet, account.username, leaf) for leaf in topics.FROM_DEVICE]
            reads = [topics.device(fleet, account.username, leaf) for leaf in topics.TO_DEVICE] + [models]
        case "gateway":
            writes = [topics.device(fleet, "+", leaf) for leaf in topics.TO_DEVICE] + [models]
            reads = [topics.device(fleet, "+", leaf) for leaf in topics.FROM_DEVICE]
        case "observer":
            writes = []
            reads = [f"{topics.ROOT}/{fleet}/#"]
    lines = [f"user {account.username}"]
    lines += [f"topic write {topic}" for topic in writes]
    lines += [f"topic read {topic}" for topic in reads]
    return "\n".join(lines) + "\n"
