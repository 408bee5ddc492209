"""A revocation list as an authority that was forgotten has it."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


def write_expired_list(authority, path):
    """Write a list of `authority` to `path` that was to be renewed yesterday."""
    key = serialization.load_pem_private_key((authority.folder / "ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - datetime.timedelta(days=3))
        .next_update(now - datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
