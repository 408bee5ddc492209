"""TLS on the gateways' port: credentials that follow the files on the disk, and whom a peer's certificate names."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from pollen.errors import SettingsError
from pollen.tls import ROLE_URI

LOG = logging.getLogger("pollen.server.bridge")

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a TLS peer is, by its certificate; `role` is "" where that names none, or several."""

    name: str
    role: str
    serial: int


def peer_of(context: Any) -> Peer | None:
    """The peer of a gRPC call; None on a plain connection, which is on loopback."""
    pem = context.auth_context().get("x509_pem_cert")
    if not pem:
        return None
    certificate = x509.load_pem_x509_certificate(pem[0])
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    roles = [uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI)]
    return Peer(names[0] if len(names) == 1 else "", roles[0] if len(roles) == 1 else "", certificate.serial_number)


class RevocationList:
    """The serial numbers in a CRL file of the authority `ca`; read again when the file changes.

    Raises SettingsError when it can't be read, or isn't the authority's. Later that is logged, and what was read before
    holds. A list that was to be renewed by now holds too: what it revokes stays revoked.
    """

    def __init__(self, path: Path, ca: Path) -> None:
        self._path = path
        self._ca = ca
        self._stamp = _stamp(path)
        self._serials = self._read()

    def holds(self, serial: int) -> bool:
        """Whether `serial` is revoked, as the file says now."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._serials = self._read()
            except SettingsError as error:
                LOG.error("%s; the list read before holds", error)
            else:
                LOG.info("revocation list read again: %d certificates", len(self._serials))
        return serial in self._serials

    def _read(self) -> frozenset[int]:
        try:
            crl = x509.load_pem_x509_crl(self._path.read_bytes())
            authorities = x509.load_pem_x509_certificates(self._ca.read_bytes())
        except OSError as error:
            raise SettingsError(f"listen.crl or ca: {error}") from error
        except ValueError as error:
            raise SettingsError(
                f"listen.crl = {self._path}: no revocation list, or ca no certificate, in PEM"
            ) from error
        if not any(_signed_by(crl, authority) for authority in authorities):
            raise SettingsError(f"listen.crl = {self._path}: is not signed by listen.ca; take both from `pollen ca`")
        return frozenset(entry.serial_number for entry in crl)


def credentials(ca: Path, certificate: Path, key: Path, dialled: Callable[[], None]) -> Any:
    """gRPC credentials for mutual TLS that take files renewed on the disk for new connections.

    `dialled` is called, from grpc's threads, as each connection begins. Raises SettingsError.
    """
    stamp = _stamp(ca, certificate, key)
    initial = _configuration(ca, certificate, key)

    def renewed() -> Any:
        nonlocal stamp
        dialled()
        now = _stamp(ca, certificate, key)
        if now == stamp:
            return None
        stamp = now
        try:
            configuration = _configuration(ca, certificate, key)
        except SettingsError as error:
            LOG.error("%s; the certificate read before is still used", error)
            return None
        LOG.info("listen.ca, certificate and key read again")
        return configuration

    return grpc.dynamic_ssl_server_credentials(initial, renewed, require_client_authentication=True)


def _configuration(ca: Path, certificate: Path, key: Path) -> Any:
    """What the files hold now. Raises SettingsError when they can't be used, or don't go together."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
        pair = (key.read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca.read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"listen.ca, certificate or key ({certificate}): can't be used: {error}; give those of `pollen ca`"
        ) from error


def _signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except TypeError:
        return False  # a kind of key that signs no lists


def _stamp(*files: Path) -> _Stamp:
    """What changes when one of the files does."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
