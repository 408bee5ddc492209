"""One window's prediction, as those beside the device see it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.learning.windowing import Window
from edge_client.settings import Target
from pollen.manifest import Loss
from pollen.objective import CLASSIFICATION_LOSSES

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the model says of a window, made when the window was complete.

    `number` counts windows since the start; `wall` is the time of the window's last reading in seconds since 1970,
    which means little unless `synchronised`. `values` [k], finite: forecasts in the channels' own units, or class
    probabilities (of class 1 alone where there are two), or one value for a regression; none for target "self".
    `version` of the weights, -1 when they are the bundle's. `error` and `anomaly` (the probability of errors this
    large, None unless judged) are those of the newest window whose truth is known.
    """

    number: int
    wall: float
    synchronised: bool
    values: Floats
    version: int
    error: float | None
    anomaly: float | None
    is_anomaly: bool


def values_of(window: Window, loss: Loss, target: Target) -> Floats | None:
    """`Prediction.values` of a window with its output; None when the model gave something that isn't a number."""
    output = np.zeros(0, np.float32) if window.output is None else window.output.ravel()
    if not np.isfinite(output).all():
        return None
    if target == "self":
        return np.zeros(0, np.float32)
    if loss.name in CLASSIFICATION_LOSSES:
        return _probabilities(output, loss) if loss.from_logits else output.copy()
    return output.copy() if target == "label" or window.scaling is None else window.scaling.inverse(output)


def _probabilities(logits: Floats, loss: Loss) -> Floats:
    if loss.name == "binary_crossentropy":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)  # the sigmoid, without overflow
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)
