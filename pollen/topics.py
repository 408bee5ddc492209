"""The MQTT topic tree, `pollen/1/<fleet>/…`: the one place that builds and takes apart topic names.

| topic            | direction | retained | content                         |
|------------------|-----------|----------|---------------------------------|
| d/<device>/state | device →  | yes      | birth, or death (also the will) |
| d/<device>/update, result, vitals | device → | no | replies and measurements      |
| d/<device>/task, receipt          | → device | no | what to do, what became of it |
| m/<model>/head, weights, bundle   | → all    | yes | the newest model              |
| m/<model>/infer                   | → all    | yes | a graph that only predicts    |
"""

from dataclasses import dataclass
from typing import Final, Literal

from pollen.identity import is_name

ROOT: Final = "pollen/1"

DeviceLeaf = Literal["state", "update", "result", "vitals", "task", "receipt"]
ModelLeaf = Literal["head", "weights", "bundle", "infer"]

FROM_DEVICE: Final[tuple[DeviceLeaf, ...]] = ("state", "update", "result", "vitals")
TO_DEVICE: Final[tuple[DeviceLeaf, ...]] = ("task", "receipt")


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A topic of one device, taken apart."""

    fleet: str
    device: str
    leaf: str


def device(fleet: str, name: str, leaf: DeviceLeaf) -> str:
    """The topic of one device, or with `name` "+" the filter for all of them."""
    return f"{ROOT}/{fleet}/d/{name}/{leaf}"


def model(fleet: str, name: str, leaf: ModelLeaf) -> str:
    """The retained topic of one model."""
    return f"{ROOT}/{fleet}/m/{name}/{leaf}"


def shared(group: str, topic_filter: str) -> str:
    """The shared subscription (MQTT 5, section 4.8.2) that spreads `topic_filter` over a group of gateways."""
    return f"$share/{group}/{topic_filter}"


def parse_device(topic: str) -> DeviceTopic | None:
    """Take a device topic apart; None when `topic` is no such topic."""
    parts = topic.split("/")
    if len(parts) != 6 or parts[:2] != ROOT.split("/") or parts[3] != "d" or not is_name(parts[4]):
        return None
    return DeviceTopic(fleet=parts[2], device=parts[4], leaf=parts[5])
