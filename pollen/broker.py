"""How a role reaches the MQTT broker: settings shared by device, gateway and demo."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pollen.errors import SettingsError
from pollen.settings import SECRET

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Broker:
    """`[broker]`: where the broker is and how to prove who we are.

    With `ca` the connection is TLS (1.2 or newer); `certificate` and `key` (PEM files) are the client's.
    `keepalive_s` in seconds.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password: str = field(default="", metadata=SECRET)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive_s: int = 60

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port = {self.port} must be from 1 to 65535")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; set both or neither")

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for this broker, None for a plain connection. Raises SettingsError naming the file."""
        if self.ca is None:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None and self.key is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"broker.ca, certificate or key ({self.ca}): can't be used: {error}") from error
        return context
