"""Mosquitto's access rules: what each role may write and read. What no rule grants is denied."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pollen import topics
from pollen.errors import SettingsError
from pollen.identity import check_name
from pollen.settings import SECRET

Role = Literal["device", "gateway", "observer"]

NOBODYS: Final = "topic deny #"
_REVOKED: Final = re.compile(rf"(?:^\n)?^user (\S+)[ \t\r]*\n{re.escape(NOBODYS)}[ \t\r]*(?:\n|\Z)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Account:
    """Who may connect; the user name is also the MQTT client id and, for a device, its name in every topic.

    With certificates the user name is the certificate's CN, there is no password, and devices need no account.
    """

    username: str
    password: str = field(repr=False, metadata=SECRET)
    role: Role


def check(accounts: Sequence[Account], *, certificates: bool) -> None:
    """Raise SettingsError for names that can't be used or are there twice, and for a missing password."""
    seen: set[str] = set()
    for account in accounts:
        check_name(account.username, "account")
        if account.username in seen:
            raise SettingsError(f"account {account.username!r} is there twice; give each client its own")
        if not account.password and not certificates:
            raise SettingsError(f"account {account.username!r} has no password; give it one")
        seen.add(account.username)


def rules(fleet: str, accounts: Sequence[Account], *, certificates: bool, revoked: Iterable[str] = ()) -> str:
    """The rules as Mosquitto's acl_file has them; `revoked`: who is denied everything.

    Where passwords prove identity, there is one block an account. Where certificates do, whoever has no account is a
    device, by patterns; those hold for everybody, so gateways and observers are denied the topics that the patterns
    would grant them: Mosquitto looks at what is denied first.
    """
    blocks = [_patterns(fleet)] if certificates else []
    named = [account for account in accounts if not certificates or account.role != "device"]
    blocks += [_block(fleet, account, deny_own=certificates) for account in named]
    blocks += [f"user {name}\n{NOBODYS}\n" for name in sorted(set(revoked))]
    return "\n".join(blocks)


def revoked(path: Path) -> list[str]:
    """Who is denied everything by the rules in the file at `path`; nobody when it isn't there."""
    try:
        return _REVOKED.findall(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []


def revoke(rules: str, name: str) -> str:
    """The rules with one that denies `name` everything."""
    return rules if name in _REVOKED.findall(rules) else f"{rules}\nuser {name}\n{NOBODYS}\n"


def readmit(rules: str, name: str) -> str:
    """The rules without those that deny `name` everything."""
    return _REVOKED.sub(lambda block: "" if block[1] == name else block[0], rules)


def _models(fleet: str) -> str:
    return f"{topics.ROOT}/{fleet}/m/#"


def _patterns(fleet: str) -> str:
    lines = [f"pattern write {topics.device(fleet, '%u', leaf)}" for leaf in topics.FROM_DEVICE]
    lines += [f"pattern read {topics.device(fleet, '%u', leaf)}" for leaf in topics.TO_DEVICE]
    return "\n".join([*lines, f"pattern read {_models(fleet)}", ""])


def _block(fleet: str, account: Account, *, deny_own: bool) -> str:
    name = account.username
    writes: list[str] = []
    match account.role:
        case "device":
            writes = [topics.device(fleet, name, leaf) for leaf in topics.FROM_DEVICE]
            reads = [topics.device(fleet, name, leaf) for leaf in topics.TO_DEVICE] + [_models(fleet)]
        case "gateway":
            writes = [topics.device(fleet, "+", leaf) for leaf in topics.TO_DEVICE] + [_models(fleet)]
            reads = [topics.device(fleet, "+", leaf) for leaf in topics.FROM_DEVICE]
        case "observer":
            reads = [f"{topics.ROOT}/{fleet}/#"]
    lines = [f"user {name}"]
    if deny_own:
        lines.append(f"topic deny {topics.ROOT}/{fleet}/d/{name}/#")
    lines += [f"topic write {topic}" for topic in writes]
    lines += [f"topic read {topic}" for topic in reads]
    return "\n".join([*lines, ""])
