"""Settings of `pollen-gateway`: one TOML file, these tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pollen import bridge
from pollen.broker import Broker
from pollen.http_settings import Http
from pollen.identity import is_name
from pollen.messages import SMALL_BYTES
from pollen.service import Logging
from pollen.settings import SECRET
from pollen.tls import check_endpoint

MAX_UPDATE_BYTES: Final = bridge.MAX_MESSAGE_BYTES // 2
MOST_UNACKNOWLEDGED: Final = 10_000
OPEN_GROUP: Final = "gateways"
# Settings that a running gateway takes over.
LIVE: Final = (
    "limits",
    "drain_s",
    "server",
    *(f"broker.{name}" for name in ("host", "port", "username", "password", "certificate", "key", "keepalive_s")),
)


@dataclass(frozen=True, slots=True)
class Server:
    """`[server]`: where the server's bridge listens. With `ca`, `certificate` and `key` (PEM files) the stream is
    mutual TLS; plain is allowed on loopback only."""

    host: str = "127.0.0.1"
    port: int = 7070
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        check_endpoint(self.host, self.port, self.ca, self.certificate, self.key)

    @property
    def target(self) -> str:
        """What gRPC dials."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`. `update_bytes`: the largest update or result that is forwarded; `message_bytes`: the largest
    state or vitals message; `receive_maximum`: how many messages the broker may have unacknowledged here, and
    `inflight_bytes`: from how many bytes of them on nothing more is read, which bounds the memory.

    The others hold for each device, 0 is no limit: `uploads_per_s` updates and results with up to `upload_burst` at
    once, `messages_per_s` states and vitals with up to `message_burst` at once, `bytes_per_s` of all of them. What
    exceeds them is dropped and counted; honest devices send it again."""

    update_bytes: int = 16 * 1024 * 1024
    message_bytes: int = SMALL_BYTES
    receive_maximum: int = 128
    inflight_bytes: int = 24 * 1024 * 1024
    uploads_per_s: float = 50.0
    upload_burst: int = 100
    messages_per_s: float = 10.0
    message_burst: int = 50
    bytes_per_s: int = 5_000_000

    def __post_init__(self) -> None:
        for name, most in (
            ("update_bytes", MAX_UPDATE_BYTES),
            ("message_bytes", MAX_UPDATE_BYTES),
            ("receive_maximum", MOST_UNACKNOWLEDGED),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 1 to {most}")
        for name in ("inflight_bytes", "upload_burst", "message_burst"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be 1 or more")
        for name in ("uploads_per_s", "messages_per_s", "bytes_per_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name):g} must be 0 or more; 0 is no limit")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The whole file.

    `name` is the MQTT client id and must be this gateway's alone; where the broker takes the user name as client
    id, that too. `group` names the shared subscription: gateways of one group share the load. A device that
    knows it can join, and what falls to it is lost until it is sent again (docs/broker.md), so it is kept as a secret.
    `session_expiry_s`: how long the broker keeps what it sent here and heard nothing of, after this gateway
    died; a dead gateway goes on getting its share as long. `drain_s`: how long SIGTERM waits for the server to
    accept what it was given.
    """

    fleet: str
    name: str = "gateway-1"
    group: str = field(default=OPEN_GROUP, metadata=SECRET)
    session_expiry_s: int = 120
    drain_s: float = 10.0
    broker: Broker = field(default_factory=Broker)
    server: Server = field(default_factory=Server)
    limits: Limits = field(default_factory=Limits)
    http: Http = field(default_factory=Http)
    logging: Logging = field(default_factory=Logging)

    def __post_init__(self) -> None:
        for item in ("fleet", "name", "group"):
            if not is_name(value := getattr(self, item)):
                shown = item if item == "group" else f"{item} = {value!r}"
                raise ValueError(f"{shown} must be 1 to 64 of A-Z a-z 0-9 . _ -")
        if not 1 <= self.session_expiry_s < 2**32 - 1:
            raise ValueError(f"session_expiry_s = {self.session_expiry_s} must be from 1 to 4294967294")
        if self.drain_s < 0:
            raise ValueError(f"drain_s = {self.drain_s:g} must not be negative")
