"""What Home Assistant must know to show a device's predictions: one retained discovery message.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (Home Assistant 2024.11 and newer).
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from edge_client.sensors import Channel
from pollen import __version__


def discovery_topic(prefix: str, device: str) -> str:
    """Where the message belongs: the object id may hold letters, digits, _ and - only."""
    return f"{prefix}/device/pollen_{_id(device)}/config"


def discovery(
    device: str,
    model: str,
    topic: str,
    channels: Sequence[Channel],
    *,
    labels: Sequence[str] | None = None,
    anomalies: bool = True,
    availability: str,
    expires_s: int,
) -> dict[str, Any]:
    """The message: a sensor for each forecast channel or for the label, the error, and whether there is an anomaly.

    `channels` in the order of a prediction's values, empty where the values are no channels. `labels`: the names of the
    classes, empty where they have none, None where no label is predicted. `anomalies`: whether windows are judged.
    Values older than `expires_s` seconds are shown as unavailable.
    """
    node = f"pollen_{_id(device)}"
    parts: dict[str, Any] = {}
    for index, channel in enumerate(channels):
        parts[f"{node}_{_id(channel.name)}"] = {
            "platform": "sensor",
            "name": f"{channel.name} forecast",
            "state_class": "measurement",
            "value_template": f"{{{{ value_json['values'][{index}] }}}}",
        } | ({"unit_of_measurement": channel.unit} if channel.unit else {})
    if labels is not None:
        parts[f"{node}_label"] = {"platform": "sensor", "name": "label", "value_template": _label(labels)}
    parts[f"{node}_error"] = {
        "platform": "sensor",
        "name": "prediction error",
        "state_class": "measurement",
        "entity_category": "diagnostic",
        "value_template": "{{ value_json.error }}",
    }
    if anomalies:
        parts[f"{node}_anomaly"] = {
            "platform": "binary_sensor",
            "name": "anomaly",
            "device_class": "problem",
            "payload_on": "on",
            "payload_off": "off",
            "value_template": "{{ 'on' if value_json.anomaly else 'off' }}",
        }
    for unique_id, part in parts.items():
        part |= {"unique_id": unique_id, "expire_after": expires_s}
    return {
        "device": {"identifiers": [node], "name": device, "manufacturer": "Pollen", "model": model},
        "origin": {"name": "pollen-edge", "sw_version": __version__},
        "components": parts,
        "state_topic": topic,
        "availability": [{"topic": availability}],
        "qos": 0,
    }


def _label(classes: Sequence[str]) -> str:
    """A template for the most probable class's name or number; of one value, that of class 1 or the label itself."""
    values = "value_json['values']"
    if not classes:
        return f"{{{{ {values}.index({values} | max) if {values} | length > 1 else {values}[0] }}}}"
    number = f"{values}.index({values} | max) if {values} | length > 1 else {values}[0] | round | int"
    return f"{{{{ {json.dumps(list(classes))}[{number}] }}}}"


def _id(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)
