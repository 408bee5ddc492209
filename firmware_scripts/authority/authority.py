"""The certificate authority of one fleet: a folder from which everyone's certificates come.

ca.pem          what every part of the fleet trusts
ca.key          whoever has it can be anyone
crl.pem         what was revoked; for the broker and the server
issued/NAME.pem, issued/NAME.key
registry.sqlite what was issued, the source of crl.pem
"""

import contextlib
import datetime
import difflib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmware_scripts.authority import certificates
from firmware_scripts.authority.certificates import ROLES, SERVING, Role
from firmware_scripts.authority.registry import Entry, Registry
from pollen import atomic
from pollen.errors import PollenError, SettingsError
from pollen.identity import check_name

PEM: Final = serialization.Encoding.PEM
OWN_DAYS: Final = 3650
ISSUED_DAYS: Final = 365
_MOST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as it was issued: its files (PEM), serial number, and the end of its validity (UTC)."""

    name: str
    role: Role
    certificate: Path
    key: Path
    serial: int
    not_after: datetime.datetime


class Authority:
    """An authority in its folder. Several processes may use one at the same time."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, fleet: str, *, days: int = OWN_DAYS) -> Self:
        """Make the authority of `fleet`, valid for `days`, with an empty revocation list, in a new folder.

        Raises SettingsError when the folder holds something, and for a name or days that can't be used.
        """
        check_name(fleet, "fleet")
        _check_days(days)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SettingsError(f"{folder}: is there already; give a new folder")
        now = datetime.datetime.now(datetime.UTC)
        key = certificates.new_key()
        certificate = certificates.own_certificate(key, fleet, now, days)
        # It appears whole or not at all, and nobody else may ever look into it: mkdtemp's folders have mode 0700.
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            authority = cls(made, certificate, key)
            atomic.write(made / "ca.key", certificates.pem_of(key), 0o600)
            atomic.write(authority.ca, certificate.public_bytes(PEM), 0o644)
            (made / "issued").mkdir(mode=0o700)
            Registry.create(made / "registry.sqlite")
            authority.renew_crl()
            made.rename(folder)
            atomic.flush_folder(folder.parent)
        except OSError as error:
            raise SettingsError(f"{folder}: can't be made ({error.strerror})") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the authority in `folder`. Raises SettingsError when there is none, or its key isn't its own."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except OSError as error:
            raise SettingsError(
                f"{error.filename}: can't be read ({error.strerror}); give the folder of `pollen ca init`"
            ) from error
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{folder}: ca.pem or ca.key is damaged; restore the folder's backup") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(f"{folder}: ca.key is not the key of ca.pem; restore the folder's backup")
        return cls(folder, certificate, key)

    @property
    def fleet(self) -> str:
        """The fleet that it issues for."""
        (organisation,) = self.certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        return str(organisation.value)

    @property
    def until(self) -> datetime.datetime:
        """The end of its validity (UTC), and of everything it has issued."""
        return self.certificate.not_valid_after_utc

    def crl_until(self) -> datetime.datetime:
        """When its revocation list must have been renewed (UTC): a broker turns everyone away afterwards.

        Raises PollenError when the list can't be read.
        """
        crl = self._read_crl()
        assert crl.next_update_utc is not None  # noqa: S101  # as `revocation_list` makes them
        return crl.next_update_utc

    def crl_made(self) -> tuple[int, datetime.datetime]:
        """The number of its newest revocation list, and when that was made (UTC)."""
        with self._registry() as registry:
            return registry.newest_list()

    @property
    def ca(self) -> Path:
        """Its own certificate."""
        return self.folder / "ca.pem"

    @property
    def crl(self) -> Path:
        """Its revocation list."""
        return self.folder / "crl.pem"

    def issue(
        self, name: str, role: Role, *, hosts: Sequence[str] = (), days: int = ISSUED_DAYS, replace: bool = False
    ) -> Issued:
        """Make a key and a certificate for `name`, valid for `days` or as long as the authority itself.

        `hosts`: the DNS names and addresses by which a server or broker is dialled. `replace`: revoke the certificate
        that `name` has. Raises SettingsError for a name, host or role that can't be used, PollenError when the name
        has another role or, without `replace`, a certificate that stands.
        """
        check_name(name, "name")
        _check_days(days)
        if role not in ROLES:
            raise SettingsError(f"role: {role!r} must be one of {', '.join(ROLES)}")
        if bool(hosts) != (role in SERVING):
            needs = "needs at least one host, as clients know it by that" if role in SERVING else "has no hosts"
            raise SettingsError(f"host: the role {role} {needs}")
        now = datetime.datetime.now(datetime.UTC)
        if self.until <= now:
            raise PollenError(f"{self.ca}: has expired; make a new authority with `pollen ca init`")
        key = certificates.new_key()
        certificate = certificates.certificate(
            (self.certificate, self._key),
            key.public_key(),
            name,
            role,
            hosts=hosts,
            now=now,
            valid=datetime.timedelta(days=days),
        )
        entry = Entry(name, role, certificate.serial_number, now, certificate.not_valid_after_utc, None)
        paths = self.folder / "issued" / f"{name}.pem", self.folder / "issued" / f"{name}.key"
        with self._registry() as registry:
            _check_free(registry, name, role, replace=replace)
            # Noted before it exists: what is in nobody's books can't be revoked.
            registry.add(entry, replacing=replace)
            atomic.write(paths[1], certificates.pem_of(key), 0o600)
            atomic.write(paths[0], certificate.public_bytes(PEM), 0o644)
            if replace:
                self._write_crl(registry)
        return Issued(name, role, *paths, entry.serial, entry.not_after)

    def revoke(self, name: str) -> None:
        """Revoke the certificate of `name` and write the revocation list; once more does no harm.

        Raises PollenError, with names like it, when there was never one.
        """
        with self._registry() as registry:
            if registry.role(name) is None:
                near = difflib.get_close_matches(name, registry.names(), 3)
                hint = f"; did you mean {' or '.join(near)}?" if near else "; `pollen ca list` shows what there is"
                raise PollenError(f"{self.folder} never issued a certificate for {name!r}{hint}")
            registry.revoke(name, datetime.datetime.now(datetime.UTC))
            self._write_crl(registry)

    def renew_crl(self, days: int | None = None) -> None:
        """Write the revocation list anew, to be renewed within `days`; None: as long as the authority is valid."""
        if days is not None:
            _check_days(days)
        with self._registry() as registry:
            self._write_crl(registry, days)

    def entries(self, name: str | None = None) -> list[Entry]:
        """Every certificate ever issued, or those of `name` alone; by name, the newest last.

        A revocation list that lacks some of them, as a kill between books and list leaves it, is written again first.
        """
        with self._registry() as registry:
            self._mend_crl(registry)
            return registry.entries(name)

    def _read_crl(self) -> x509.CertificateRevocationList:
        try:
            return x509.load_pem_x509_crl(self.crl.read_bytes())
        except (OSError, ValueError) as error:
            raise PollenError(f"{self.crl}: can't be read; write it again with `pollen ca crl`") from error

    def _mend_crl(self, registry: Registry) -> None:
        try:
            listed = {entry.serial_number for entry in self._read_crl()}
        except PollenError:
            listed = None
        if listed is None or not {serial for serial, _ in registry.revoked()} <= listed:
            self._write_crl(registry)

    def _write_crl(self, registry: Registry, days: int | None = None) -> None:
        # A broker refuses the whole fleet over a list that was to be renewed by now. The list goes to the broker by the
        # operator's hand, so an early end would protect from nobody; it holds as long as the authority does.
        now = datetime.datetime.now(datetime.UTC)
        crl = certificates.revocation_list(
            (self.certificate, self._key),
            registry.revoked(),
            registry.next_list_number(now),
            now=now,
            next_update=self.until if days is None else min(self.until, now + datetime.timedelta(days=days)),
        )
        atomic.write(self.crl, crl.public_bytes(PEM), 0o644)

    @contextlib.contextmanager
    def _registry(self) -> Iterator[Registry]:
        try:
            with Registry.open(self.folder / "registry.sqlite") as registry:
                yield registry
        except OSError as error:
            raise PollenError(f"{self.folder}: can't be written ({error.strerror}); then do it again") from error


def _check_days(days: int) -> None:
    if not 1 <= days <= _MOST_DAYS:
        raise SettingsError(f"days = {days} must be from 1 to {_MOST_DAYS}")


def _check_free(registry: Registry, name: str, role: Role, *, replace: bool) -> None:
    before = registry.role(name)
    if before is not None and before != role:
        raise PollenError(f"{name!r} is the name of a {before} and stays that; take another for a {role}")
    standing = next((entry for entry in registry.entries(name) if entry.revoked_at is None), None)
    if standing is not None and not replace:
        raise PollenError(
            f"{name!r} has a certificate, valid until {standing.not_after:%Y-%m-%d};"
            " --replace revokes it and makes another"
        )
