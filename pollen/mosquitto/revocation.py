"""Lock a client out of a running Mosquitto: a rule denies it everything, the revocation list its next connection."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pollen.errors import PollenError, SettingsError
from pollen.identity import check_name
from pollen.mosquitto import access, certificate_check, configuration, hangup, owned_file

_PROCESS: Final = "mosquitto"


@dataclass(frozen=True, slots=True)
class Revocation:
    """What was done. `changed`: the rules were; `crl`: where the list was written, None: it was there or wasn't given;
    `pid`: the broker that was told to read both, None: none runs here with this folder. `copy`: the folder is a copy of
    what the broker has elsewhere."""

    name: str
    changed: bool
    crl: Path | None
    pid: int | None
    copy: bool


def revoke(folder: Path, name: str, crl: Path | None, ca: Path | None = None) -> Revocation:
    """Deny `name` everything in the broker's `folder` (of `pollen broker-config`), take over `crl`, tell the broker.

    Once more does no harm. The broker is told when it runs on this machine, by its pid file. A client that is connected
    stays so, without a right, and can't come back. Raises SettingsError when `folder` is no broker's, or its broker
    trusts another authority than `ca`; PollenError when it can't be written, or the broker not be told.
    """
    return _change(folder, name, access.revoke, crl, ca)


def readmit(folder: Path, name: str, crl: Path | None, ca: Path | None = None) -> Revocation:
    """Take back the rule that denies `name` everything, for a new certificate; else as `revoke`."""
    return _change(folder, name, access.readmit, crl, ca)


def _change(
    folder: Path, name: str, change: Callable[[str, str], str], crl: Path | None, ca: Path | None
) -> Revocation:
    check_name(name, "name")
    options = _options(folder)
    rules = folder / configuration.ACCESS_RULES
    try:
        with owned_file.locked(folder):
            if crl is not None:
                certificate_check.check_list(crl)
            if ca is not None:
                _check_trusted(ca, _here(Path(options.get("cafile", "")), folder, options))
            before = rules.read_text(encoding="utf-8", errors="surrogateescape")
            after = change(before, name)
            if after != before:
                owned_file.replace(rules, after.encode(errors="surrogateescape"), 0o600)
            written = _take_over(crl, folder, options) if crl is not None else None
    except OSError as error:
        raise PollenError(f"{folder}: can't be written ({error.strerror}); run this as the folder's owner") from error
    copy = _rules_of(options).parent.resolve() != folder.resolve()
    return Revocation(name, after != before, written, None if copy else _tell(folder, options), copy)


def _options(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / configuration.CONFIGURATION).read_text(encoding="utf-8").splitlines()
        (folder / configuration.ACCESS_RULES).stat()
    except OSError as error:
        raise SettingsError(
            f"{error.filename}: can't be read ({error.strerror}); give the folder of `pollen broker-config`"
        ) from error
    return {key: value for key, _, value in (line.partition(" ") for line in lines) if value}


def _take_over(crl: Path, folder: Path, options: dict[str, str]) -> Path | None:
    """Copy the list to where the broker reads it; None when there is nothing to copy."""
    if "crlfile" not in options:
        raise SettingsError(
            f"{folder / configuration.CONFIGURATION}: names no crlfile; run `pollen broker-config` again"
        )
    target = _here(Path(options["crlfile"]), folder, options)
    content = crl.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return None
    owned_file.replace(target, content, 0o640)
    return target


def _here(file: Path, folder: Path, options: dict[str, str]) -> Path:
    """Where `file` of the configuration is: `folder` may be a copy of what the broker has."""
    return folder / file.name if file.parent == _rules_of(options).parent else file


def _check_trusted(ca: Path, brokers: Path) -> None:
    """Another authority's list would have the broker turn everyone away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(brokers)
    except ssl.SSLError as error:
        raise SettingsError(f"{brokers}: is no CA certificate in PEM; run `pollen broker-config` again") from error
    if ssl.PEM_cert_to_DER_cert(ca.read_text(encoding="ascii")) not in context.get_ca_certs(binary_form=True):
        raise SettingsError(f"{brokers}: this broker trusts another authority than {ca}; give the folder of that one")


def _rules_of(options: dict[str, str]) -> Path:
    return Path(options.get("acl_file") or options.get("plugin_opt_acl_file", ""))


def _tell(folder: Path, options: dict[str, str]) -> int | None:
    """Send SIGHUP to the broker that reads this folder; its process id, or None when it doesn't run here."""
    try:
        pid = int(Path(options["pid_file"]).read_text(encoding="ascii"))
        # The file may be an old one, and its number another process's by now, another broker's even.
        if not _reads(pid, folder / configuration.CONFIGURATION):
            return None
        port, _, host = options["listener"].partition(" ")
        hangup.send(pid, host, int(port))
    except PermissionError as error:
        raise PollenError(
            "all is written, but Mosquitto can't be told by this user; run: sudo systemctl reload mosquitto"
        ) from error
    except (KeyError, ValueError, OSError):
        return None
    return pid


def _reads(pid: int, file: Path) -> bool:
    """Whether process `pid` is a Mosquitto that was started with `file`, a link to it, or a copy."""
    if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() != _PROCESS:
        return False
    started_in = Path(f"/proc/{pid}/cwd")
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]
    content = file.read_bytes()
    return any(path.is_file() and path.read_bytes() == content for path in (started_in / os.fsdecode(w) for w in words))
