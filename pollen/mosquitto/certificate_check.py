"""Whether a broker's certificate, key and revocation list will serve, found out as its clients do: by a handshake."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pollen.errors import SettingsError
from pollen.mosquitto.configuration import Tls

# X509_V_ERR_…, x509_vfy.h of OpenSSL: what is wrong, and what to do.
_REASONS: Final = {
    3: ("crl", "is not by this CA", "give the crl.pem of the authority whose ca.pem you gave"),
    9: ("certificate", "is not valid yet", "set this machine's clock, or issue it again"),
    10: ("certificate", "has expired", "issue a new one: pollen ca issue … --role broker --replace"),
    11: ("crl", "is not valid yet", "set this machine's clock, or renew the list"),
    12: ("crl", "has expired, and Mosquitto would refuse every client", "renew it: pollen ca crl"),
    18: ("certificate", "is self-signed", "issue one by the fleet's authority: pollen ca issue … --role broker"),
    19: ("certificate", "is not by this CA", "give the ca.pem of the authority that issued it"),
    20: ("certificate", "is not by this CA", "give the ca.pem of the authority that issued it"),
    23: ("certificate", "is revoked", "issue a new one: pollen ca issue … --role broker --replace"),
    26: ("certificate", "is not for a broker", "issue one that is: pollen ca issue … --role broker"),
}


@dataclass(frozen=True, slots=True)
class Checked:
    """`expires`: until when the broker's certificate is valid, in seconds since 1970; `names`: by what clients may dial
    the broker, host names and addresses."""

    expires: float
    names: tuple[str, ...]


def check(tls: Tls) -> Checked:
    """Raises SettingsError, naming the file and what to do, for files that Mosquitto or its clients would refuse."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(server, tls.certificate, tls.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    _load_trusted(client, tls.ca, "CA certificate")
    if tls.crl is not None:
        check_list(tls.crl)
        client.load_verify_locations(cafile=tls.crl)
        client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    try:
        certificate = _shake_hands(client, server)
    except ssl.SSLCertVerificationError as error:
        kind, wrong, fix = _REASONS.get(error.verify_code, ("certificate", error.verify_message, "issue a new one"))
        file = tls.crl if kind == "crl" else tls.certificate
        raise SettingsError(f"{file}: {wrong} ({tls.ca}); {fix}") from error
    except ssl.SSLError as error:
        raise SettingsError(f"{tls.certificate}: can't be used for TLS ({error.reason}); issue a new one") from error
    names = tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return Checked(ssl.cert_time_to_seconds(certificate["notAfter"]), names)


def check_list(crl: Path) -> None:
    """Raises SettingsError when there is no revocation list in the file: after a reload of one that it can't read,
    Mosquitto 2.0 lets in who was revoked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load_trusted(context, crl, "revocation list")
    if not context.cert_store_stats()["crl"]:
        raise SettingsError(f"{crl}: is no revocation list in PEM; give the authority's crl.pem")


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for file in (certificate, key):
        _read(file)
    try:
        # Without a password OpenSSL would ask at the terminal; so would Mosquitto, at every start.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"{key}: is not the key of {certificate}; give the two that belong together") from error
        raise SettingsError(
            f"{certificate} and {key}: are no certificate and unencrypted key in PEM ({error.reason or error})"
        ) from error


def _load_trusted(context: ssl.SSLContext, file: Path, what: str) -> None:
    _read(file)
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise SettingsError(f"{file}: is no {what} in PEM ({error.reason or error})") from error


def _read(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{file}: can't be read ({error.strerror}); give an existing file") from error


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """A TLS handshake in memory; returns the server's certificate as the client has verified it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return ends[0].getpeercert() or {}
