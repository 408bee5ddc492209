"""What the device shows to those beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pollen.broker import Broker


@dataclass(frozen=True, slots=True)
class Local:
    """`[local]`: the Unix socket by which `pollen-edge status` and `predict` ask the running agent.

    `socket`: its path, from the state directory; "" for edge.sock, "off" for none.
    """

    socket: str = ""

    def path_in(self, state_dir: Path) -> Path | None:
        """The socket's path, None for none."""
        if self.socket == "off":
            return None
        return state_dir / (self.socket or "edge.sock")


@dataclass(frozen=True, slots=True)
class Predictions:
    """`[predictions]`: each window's prediction, published as JSON on `topic` of `broker`.

    `publish` "off", "always" or "anomalies", only where one begins or ends; `topic`: "" for
    pollen/<device>/prediction; `discovery`: announce it to Home Assistant below this prefix, usually "homeassistant"
    ("": don't).
    """

    publish: Literal["off", "always", "anomalies"] = "off"
    topic: str = ""
    discovery: str = ""
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        if self.discovery and self.publish == "off":
            raise ValueError('discovery announces what publish = "off" never sends; set publish = "always"')
        for name in ("topic", "discovery"):
            if set(getattr(self, name)) & set("+#\0"):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be a topic to publish to, without + and #")
