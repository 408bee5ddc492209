"""Where labels come from."""

from dataclasses import dataclass, field
from typing import Final, Literal

from edge_client.settings.limits import at_least
from pollen.broker import Broker

MOST_WAITING: Final = 100_000


@dataclass(frozen=True, slots=True)
class Labels:
    """`[labels]`: where the labels of target "label" come from.

    `source` "reading": with the sensor's readings; "channel": `channel` of the sensor is the label and no input;
    "topic": from the MQTT topic `topic` on `broker`, a button's press or a label for an earlier time. `classes` names
    the classes 0, 1, … for labels that are texts. Windows wait `wait_s` seconds for a label that comes late, at most
    `waiting` of them; a label without times is for the last `span_s` seconds. For labels from a topic they wait at
    least `span_s` seconds.
    """

    source: Literal["reading", "channel", "topic"] = "reading"
    channel: str = ""
    topic: str = ""
    classes: tuple[str, ...] = ()
    wait_s: float = 0.0
    waiting: int = 1000
    span_s: float = 10.0
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        at_least(0.0, wait_s=self.wait_s, span_s=self.span_s)
        at_least(1, waiting=self.waiting)
        if self.waiting > MOST_WAITING:
            raise ValueError(f"waiting = {self.waiting} must be at most {MOST_WAITING}")
        needed = {"channel": self.channel, "topic": self.topic}
        if self.source in needed and not needed[self.source]:
            raise ValueError(f'source = "{self.source}" needs {self.source}')
