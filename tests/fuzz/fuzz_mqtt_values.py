"""Payloads on a house's MQTT topics: `python tests/fuzz/fuzz_mqtt_values.py -atheris_runs=100000`."""

import json
import math
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["edge_client.sensors"]):
    from edge_client.sensors.mqtt_topics import payload_values

PATHS = ["", "temperature", "a.b", "0", "a.1.x", "..", "-1"]
KEYS = ["temperature", "a", "b", "x", "", "0"]


def one_input(data: bytes) -> None:
    # Random bytes are hardly ever JSON: every second input is built.
    if data[:1] >= b"\x80":
        data = json.dumps(built(atheris.FuzzedDataProvider(data[1:]), 0)).encode()
    values = payload_values(data, PATHS)
    assert len(values) == len(PATHS)
    for value in values:
        assert value is None or isinstance(value, float)
        assert value is None or not math.isinf(value)


def built(source: Any, depth: int) -> Any:
    """Anything JSON can hold, and the numbers it can't."""
    match source.ConsumeIntInRange(0, 7 if depth < 8 else 4):
        case 0:
            return source.ConsumeFloat()
        case 1:
            return source.ConsumeInt(8) ** source.ConsumeIntInRange(1, 40)
        case 2:
            return source.ConsumeUnicode(16)
        case 3:
            return source.PickValueInList([True, False, None, "ON", "21.5", "1_0", "١"])
        case 4:
            return "9" * source.ConsumeIntInRange(0, 5000)
        case 5:
            return [built(source, depth + 1) for _ in range(source.ConsumeIntInRange(0, 3))]
        case _:
            chosen = [source.PickValueInList(KEYS) for _ in range(source.ConsumeIntInRange(0, 3))]
            return {key: built(source, depth + 1) for key in chosen}


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
