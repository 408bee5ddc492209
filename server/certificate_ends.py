"""Until when the server's certificates and its revocation list hold."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509

UNREADABLE: Final = 0.0  # as if it ended now: someone must look


def seconds_left(files: Mapping[str, Path | None]) -> dict[str, float]:
    """Seconds until each of `files` ends, negative afterwards, 0 for one that can't be read; None is left out.

    Of a certificate the end is notAfter, of a revocation list nextUpdate (RFC 5280, sections 4.1.2.5 and 5.1.2.5); both
    in PEM.
    """
    return {name: _seconds_left(path) for name, path in files.items() if path is not None}


def _seconds_left(path: Path) -> float:
    try:
        pem = path.read_bytes()
        if b"-----BEGIN X509 CRL-----" in pem:
            end = x509.load_pem_x509_crl(pem).next_update_utc
        else:
            end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except (OSError, ValueError):
        return UNREADABLE
    return UNREADABLE if end is None else end.timestamp() - time.time()
