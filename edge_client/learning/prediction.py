"""One window's prediction, as those beside the device see it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the model says of a window, made when the window was complete.

    `number` counts windows since the start; `wall` is the time of the window's last reading in seconds since 1970,
    which means little unless `synchronised`. `values` [k]: forecasts in the channels' own units, or class
    probabilities as the model gives them, or one value for a regression; none for target "self". `version` of the
    weights, -1 when they are the bundle's. `error` and `anomaly` (the probability of errors this large, None unless
    judged) are those of the newest window whose truth is known.
    """

    number: int
    wall: float
    synchronised: bool
    values: npt.NDArray[np.float32]
    version: int
    error: float | None
    anomaly: float | None
    is_anomaly: bool
