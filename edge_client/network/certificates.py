"""Why a broker's certificate was refused, in words that name its dates and the clock."""

import ssl
import time
from typing import Final

from edge_client.clock import Clock
from pollen.broker import Broker
from pollen.errors import PollenError

# openssl's x509_vfy.h
NOT_YET_VALID: Final = 9
EXPIRED: Final = 10


def refused_certificate(error: ssl.SSLCertVerificationError, broker: Broker, clock: Clock) -> str:
    """What was wrong and what to do. For a certificate outside its dates, asks the broker for them."""
    if error.verify_code not in (NOT_YET_VALID, EXPIRED):
        return f"its certificate is refused: {error.verify_message}; check broker.ca and broker.host"
    try:
        first, last = broker.certificate_dates()
        dates = f"valid from {first} to {last}"
    except (OSError, PollenError) as failure:
        dates = f"its dates can't be read: {failure}"
    now = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(clock.wall()))
    known = "is synchronised" if clock.synchronised() else "may be wrong"
    return f"{error.verify_message} ({dates}); the clock here says {now} and {known}: renew the certificate, or set it"
