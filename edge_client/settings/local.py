"""What the device shows to those beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pollen.broker import Broker


@dataclass(frozen=True, slots=True)
class Local:
    """`[local]`: the Unix socket by which `pollen-edge status` and `predict` ask the running agent.

    `socket`: its path, "" for edge.sock in the state directory, "off" for none.
    """

    socket: str = ""

    def path_in(self, state_dir: Path) -> Path | None:
        """The socket's path, None for none."""
        if self.socket == "off":
            return None
        return Path(self.socket) if self.socket else state_dir / "edge.sock"


@dataclass(frozen=True, slots=True)
class Predictions:
    """`[predictions]`: each window's prediction, published as JSON on `topic` of `broker`.

    `publish` "off", "always" or "anomalies" only; `discovery`: announce it to Home Assistant below this prefix ("":
    don't).
    """

    publish: Literal["off", "always", "anomalies"] = "off"
    topic: str = ""
    discovery: str = ""
    broker: Broker = field(default_factory=Broker)
