"""`[http]` of server and gateway: where their metrics, health and pages are served, and to whom."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pollen.broker import LOOPBACK
from pollen.settings import SECRET

_LEAST_TOKEN: Final = 16


@dataclass(frozen=True, slots=True)
class Http:
    """`[http]`: the service's web side; `port` 0 is none. Other machines reach it with `certificate` and `key` (PEM
    files) for TLS, or with `behind_proxy` where something in front of it does TLS. `names`: what clients may call this
    machine in the Host header, besides `host` and loopback. `token`: who shows it may change things."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False
    names: tuple[str, ...] = ()
    token: str = field(default="", metadata=SECRET)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port = {self.port} must be from 0 to 65535")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; set both or neither")
        if self.host not in LOOPBACK and self.certificate is None and not self.behind_proxy:
            raise ValueError(
                f"host = {self.host!r} is not loopback: set certificate and key for TLS, or behind_proxy = true"
            )
        if self.token and len(self.token) < _LEAST_TOKEN:
            raise ValueError(
                f"token has {len(self.token)} characters and can be guessed; give it {_LEAST_TOKEN} or more"
            )

    @property
    def hosts(self) -> list[str]:
        """What a Host header may say; anything else is a page elsewhere that had our address put under its name."""
        return [*LOOPBACK, "[::1]", self.host, *self.names]
