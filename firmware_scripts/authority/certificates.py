"""The fleet's X.509 documents (RFC 5280): the authority's own certificate, those it issues, and its revocation list.

Every key is EC P-256, every signature ECDSA with SHA-256. A certificate's CN is its name, and its role stands in the
subject alternative name as the URI `urn:pollen:role:<role>`.
"""

import datetime
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pollen.errors import SettingsError
from pollen.tls import role_uri

Role = Literal["device", "gateway", "server", "broker", "observer"]
ROLES: Final[tuple[Role, ...]] = ("device", "gateway", "server", "broker", "observer")
SERVING: Final[tuple[Role, ...]] = ("server", "broker")  # what clients dial, and know by its host name

# Whoever checks may have a clock that is slow.
_BACKDATED: Final = datetime.timedelta(days=1)
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def own_certificate(key: ec.EllipticCurvePrivateKey, fleet: str, now: datetime.datetime, days: int) -> x509.Certificate:
    """The self-signed certificate of the authority of `fleet`; it may sign certificates and revocation lists."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.COMMON_NAME, "Pollen authority"),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def certificate(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    public_key: ec.EllipticCurvePublicKey,
    name: str,
    role: Role,
    *,
    hosts: Sequence[str] = (),
    now: datetime.datetime,
    valid: datetime.timedelta,
) -> x509.Certificate:
    """A certificate for `public_key`, `valid` for so long from `now`, though no longer than the authority's own.

    `hosts`: DNS names and IP addresses by which a server or broker is dialled. Raises SettingsError for others.
    """
    issuer, key = authority
    use = ExtendedKeyUsageOID.SERVER_AUTH if role in SERVING else ExtendedKeyUsageOID.CLIENT_AUTH
    names = [x509.UniformResourceIdentifier(role_uri(role)), *map(_host, hosts)]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATED, issuer.not_valid_before_utc))
        .not_valid_after(min(now + valid, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    revoked: Iterable[tuple[int, datetime.datetime]],
    number: int,
    *,
    now: datetime.datetime,
    next_update: datetime.datetime,
) -> x509.CertificateRevocationList:
    """The list of all `revoked` (serial number, since when); `number` grows from one list to the next."""
    issuer, key = authority
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(max(now - _BACKDATED, issuer.not_valid_before_utc))
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial, since in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS #8 in PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if _HOST.fullmatch(text) is None:
            raise SettingsError(f"host: {text!r} is neither an IP address nor a DNS name") from None
        return x509.DNSName(text)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
