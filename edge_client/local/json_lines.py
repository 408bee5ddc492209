"""A prediction as one line of JSON, the same on the socket, on stdout and on MQTT."""

import json
import math
from typing import Any

from edge_client.learning.prediction import Prediction


def line_of(prediction: Prediction) -> str:
    """The prediction as one line; numbers that are not finite become null, since JSON has none."""
    return json.dumps(as_map(prediction), allow_nan=False, separators=(",", ":"))


def as_map(prediction: Prediction) -> dict[str, Any]:
    """The fields by name: `time` in seconds since 1970, `clock` whether that is right, `values` as the model's task
    has them, `error` and `anomaly_probability` of the newest window whose truth is known."""
    return {
        "window": prediction.number,
        "time": round(prediction.wall, 3),
        "clock": "synchronised" if prediction.synchronised else "unsynchronised",
        "version": prediction.version,
        "values": [_finite(float(value)) for value in prediction.values],
        "error": _finite(prediction.error),
        "anomaly": prediction.is_anomaly,
        "anomaly_probability": _finite(prediction.anomaly),
    }


def _finite(value: float | None) -> float | None:
    # Seven digits are all a float32 has.
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")
