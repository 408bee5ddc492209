"""What Home Assistant must know to show a device's predictions: one retained discovery message.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (Home Assistant 2024.11 and newer).
"""

import re
from collections.abc import Sequence
from typing import Any

from edge_client.sensors import Channel
from pollen import __version__


def discovery_topic(prefix: str, device: str) -> str:
    """Where the message belongs: the object id may hold letters, digits, _ and - only."""
    return f"{prefix}/device/pollen_{_id(device)}/config"


def discovery(
    device: str, model: str, topic: str, channels: Sequence[Channel], *, availability: str, expires_s: int
) -> dict[str, Any]:
    """The message: a sensor for each forecast channel, the error, and whether there is an anomaly.

    `channels` in the order of a prediction's values, empty where the values are no channels (class probabilities).
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
    parts[f"{node}_error"] = {
        "platform": "sensor",
        "name": "prediction error",
        "state_class": "measurement",
        "entity_category": "diagnostic",
        "value_template": "{{ value_json.error }}",
    }
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


def _id(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)
