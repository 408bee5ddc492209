"""Lock a client out of a running Mosquitto: a rule denies it everything, the revocation list its next connection."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pollen.errors import PollenError, SettingsError
from pollen.identity import check_name
from pollen.mosquitto import access, certificate_check, configuration, hangup, owned_file

_PROCESS: Final = "mosquitto"


@dataclass(frozen=True, slots=True)
class Revocation:
    """What was done. `denied`: the rule is new; `crl`: where the list was written, None: it was there or wasn't given;
    `pid`: the broker that was told to read both, None: it must be told otherwise."""

    name: str
    denied: bool
    crl: Path | None
    pid: int | None


def revoke(folder: Path, name: str, crl: Path | None) -> Revocation:
    """Deny `name` everything in the broker's `folder` (of `pollen broker-config`), take over `crl`, tell the broker.

    Once more does no harm. The broker is told when it runs on this machine, by its pid file. A client that is connected
    stays so, without a right, and can't come back. Raises SettingsError when `folder` is no broker's, PollenError when
    it can't be written.
    """
    check_name(name, "name")
    options = _options(folder)
    rules = folder / configuration.ACCESS_RULES
    try:
        if crl is not None:
            certificate_check.check_list(crl)
        denied = name not in access.revoked(rules)
        if denied:
            owned_file.replace(rules, rules.read_bytes() + f"\nuser {name}\n{access.NOBODYS}\n".encode(), 0o600)
        written = _take_over(crl, folder, options) if crl is not None else None
    except OSError as error:
        raise PollenError(f"{folder}: can't be written ({error.strerror}); run this as the folder's owner") from error
    return Revocation(name, denied, written, _tell(folder, options))


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
    target = Path(options["crlfile"])
    if target.parent == _rules_of(options).parent:
        target = folder / target.name  # `folder` may be a copy of what the broker has
    content = crl.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return None
    owned_file.replace(target, content, 0o600)
    return target


def _rules_of(options: dict[str, str]) -> Path:
    return Path(options.get("acl_file") or options.get("plugin_opt_acl_file", ""))


def _tell(folder: Path, options: dict[str, str]) -> int | None:
    """Send SIGHUP to the broker that reads this folder; its process id, or None when it doesn't run here."""
    if _rules_of(options).parent.resolve() != folder.resolve():
        return None
    try:
        pid = int(Path(options["pid_file"]).read_text(encoding="ascii"))
        # The file may be an old one, and its number another process's by now.
        if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() != _PROCESS:
            return None
        hangup.send(pid)
    except (KeyError, ValueError, OSError):
        return None
    return pid
