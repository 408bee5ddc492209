"""Until when a certificate is valid, read from its file; the standard library only tells it of a peer's."""

import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17


def seconds_left(file: Path) -> float | None:
    """Seconds until the first certificate of a PEM file runs out, negative afterwards; None when it can't be read."""
    try:
        pem = file.read_text(encoding="ascii")
        end = pem.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(pem[pem.index(ssl.PEM_HEADER) : end])
        return not_after(der).timestamp() - time.time()
    except (OSError, ValueError, IndexError):
        return None


def not_after(der: bytes) -> datetime:
    """The end of a DER certificate's validity (RFC 5280, section 4.1). Raises ValueError or IndexError for no such."""
    _, certificate, _ = _element(der)
    _, fields, _ = _element(certificate)
    tag, _, rest = _element(fields)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # the serial number
    for _ in ("signature algorithm", "issuer"):
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    if tag != _SEQUENCE:
        raise ValueError("not a certificate")
    _, _, rest = _element(validity)
    tag, text, _ = _element(rest)
    # UTCTime has two digits of the year; strptime's pivot is 1969, RFC 5280's is 1950, and nothing ended before 1970.
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """(tag, content, what follows) of the first DER element."""
    length, start = der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + length], der[start + length :]
