"""The folder of a broker that runs as a service: mosquitto.conf, access rules, certificates."""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pollen.errors import PollenError, SettingsError
from pollen.identity import check_name
from pollen.mosquitto import access, certificate_check, configuration, owned_file
from pollen.mosquitto.access import Account
from pollen.mosquitto.certificate_check import Checked
from pollen.mosquitto.configuration import Tls
from pollen.mosquitto.limits import Limits

CA: Final = "ca.pem"
CERTIFICATE: Final = "broker.pem"
KEY: Final = "broker.key"
CRL: Final = "crl.pem"
_PLUGINS_SINCE: Final = (2, 1)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What `pollen broker-config` is told.

    `tls`: the files to copy. `folder`: where the files will be on the broker's machine, `state`: where Mosquitto writes
    there. `version` of Mosquitto; from 2.1 on `acl_plugin`, its mosquitto_acl_file.so, replaces `acl_file`, which 2.1
    still reads but calls deprecated. `user`: whom Mosquitto runs as when root starts it.
    """

    name: str
    tls: Tls
    gateways: Sequence[str]
    observers: Sequence[str]
    host: str
    port: int
    limits: Limits
    folder: Path
    state: Path
    user: str
    version: tuple[int, int]
    acl_plugin: Path | None


def write(output: Path, fleet: Fleet) -> Checked:
    """Write the folder; who was revoked there stays so. Root gives it to the group of `fleet.user`.

    Raises SettingsError for names and files that can't be used, and PollenError when the folder can't be written.
    """
    check_name(fleet.name, "fleet")
    accounts = [Account(name, "", "gateway") for name in fleet.gateways]
    accounts += [Account(name, "", "observer") for name in fleet.observers]
    access.check(accounts, certificates=True)
    checked = certificate_check.check(fleet.tls)
    files = {
        CA: fleet.tls.ca.read_bytes(),
        CERTIFICATE: fleet.tls.certificate.read_bytes(),
        KEY: fleet.tls.key.read_bytes(),
        configuration.CONFIGURATION: _configuration(fleet).encode(),
    }
    if fleet.tls.crl is not None:
        files[CRL] = fleet.tls.crl.read_bytes()
    try:
        mode = _make(output, fleet.user)
        with owned_file.locked(output):
            gone = access.revoked(output / configuration.ACCESS_RULES)
            rules = access.rules(fleet.name, accounts, certificates=True, revoked=gone)
            for name, content in (files | {configuration.ACCESS_RULES: rules.encode()}).items():
                owned_file.replace(output / name, content, mode)
    except OSError as error:
        raise PollenError(f"{output}: can't be written ({error.strerror})") from error
    return checked


def _make(output: Path, user: str) -> int:
    """Make the folder; returns the mode of new files in it. Mosquitto reads them after it has become `user`."""
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    if new:
        output.chmod(0o700)
    group = _group(user)
    found = output.stat()
    # A folder that was given to somebody, a container's user for one, stays theirs.
    if os.geteuid() != 0 or group is None or found.st_uid != 0 or found.st_gid not in (0, group):
        return 0o600
    os.chown(output, 0, group)
    output.chmod(0o750)
    return 0o640


def _group(user: str) -> int | None:
    """The group of `user`; None for root, and for a user who isn't known here but on the machine this is made for."""
    try:
        return pwd.getpwnam(user).pw_gid or None
    except KeyError:
        return None


def _configuration(fleet: Fleet) -> str:
    folder = fleet.folder
    crl = folder / CRL if fleet.tls.crl is not None else None
    rules = folder / configuration.ACCESS_RULES
    if fleet.version >= _PLUGINS_SINCE and fleet.acl_plugin is not None:
        access_lines = [f"plugin {fleet.acl_plugin}", f"plugin_opt_acl_file {rules}"]
    else:
        access_lines = [f"acl_file {rules}"]
    return configuration.render(
        f"Written by `pollen broker-config` for the fleet {fleet.name}; run that again rather than editing.",
        user=fleet.user,
        listener=f"{fleet.port} {fleet.host}",
        # QoS 2 keeps what arrives until it is released, up to Receive Maximum messages of each client.
        identity=[*Tls(folder / CA, folder / CERTIFICATE, folder / KEY, crl).lines(), "max_qos 1", *access_lines],
        state=fleet.state,
        limits=fleet.limits,
        log="stderr",
    )


def check_absolute(path: Path, option: str) -> Path:
    """mosquitto.conf needs absolute paths without spaces at their ends; raises SettingsError for others."""
    text = str(path)
    if not path.is_absolute() or text != text.strip() or not text.isprintable():
        raise SettingsError(f"{option}: {text!r} must be an absolute path")
    return path
