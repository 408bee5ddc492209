"""How a role reaches the MQTT broker: settings shared by device, gateway and demo."""

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pollen.errors import SettingsError
from pollen.settings import SECRET

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, X509_VERIFY_PARAM_set_flags(3)
_HANDSHAKE_S: Final = 10.0
MOST_KEEPALIVE_S: Final = 65_535  # two bytes (MQTT 5, section 3.1.2.10); 0 would never notice a dead connection


@dataclass(frozen=True, slots=True)
class Broker:
    """`[broker]`: where the broker is and how to prove who we are.

    With `ca` the connection is TLS (1.2 or newer); `certificate` and `key` (PEM files) are the client's.
    `keepalive_s` in seconds. `plain`: go without TLS also beyond loopback.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password: str = field(default="", metadata=SECRET)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive_s: int = 60
    plain: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port = {self.port} must be from 1 to 65535")
        if not 1 <= self.keepalive_s <= MOST_KEEPALIVE_S:
            raise ValueError(f"keepalive_s = {self.keepalive_s} must be from 1 to {MOST_KEEPALIVE_S}")
        if self.ca is None and self.host not in LOOPBACK and not self.plain:
            raise ValueError(f"host = {self.host!r} is not loopback: set ca for TLS, or plain = true to go without")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; set both or neither")

    def tls_context(self, *, check_dates: bool = True) -> ssl.SSLContext | None:
        """The TLS context for this broker, None for a plain connection. Raises SettingsError naming the file.

        `check_dates` False takes certificates outside their dates too, and checks all else: for a machine that knows
        that its clock is wrong.
        """
        if self.ca is None:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None and self.key is not None:
                context.load_cert_chain(self.certificate, self.key)
            if not check_dates:
                context.verify_flags |= _NO_CHECK_TIME
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"broker.ca, certificate or key ({self.ca}): can't be used: {error}") from error
        return context

    def certificate_dates(self) -> tuple[str, str]:
        """From when until when the broker's certificate is valid, as it says; everything else about it is right.

        Connects for it. Raises OSError, and SettingsError as `tls_context` does.
        """
        context = self.tls_context(check_dates=False)
        if context is None:
            raise SettingsError("broker.ca is not set, so there is no certificate; set it for TLS")
        with (
            socket.create_connection((self.host, self.port), _HANDSHAKE_S) as connection,
            context.wrap_socket(connection, server_hostname=self.host) as secured,
        ):
            certificate = secured.getpeercert() or {}
            return str(certificate.get("notBefore", "?")), str(certificate.get("notAfter", "?"))
