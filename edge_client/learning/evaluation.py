"""What the errors of the predictions tell: prequential means, drift and anomalies."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edge_client.learning import drift
from edge_client.learning.anomaly import AnomalyScore
from edge_client.learning.prequential import LastTarget, MajorityClass, Prequential
from edge_client.learning.windowing import Labeller, Window
from edge_client.settings import Anomaly, Drift, Target
from pollen import scoring
from pollen.bundle import Manifest
from pollen.interpreter import Array

LOG = logging.getLogger(__name__)

# Counts a prediction that isn't a number as very wrong, without making the mean of the errors useless for ever.
_WORST_ERROR: Final = 1e3


class Evaluation:
    """Scores predictions once their truth is known, beside a baseline that learns nothing.

    The baseline's guess is made when the window is complete, like the model's: target "next": the window's last
    sample; "self": the mean of each channel over the window; "label": the most frequent class, or the last target.
    `error` is the newest, `probability` that of errors this large, None unless judged. `drifts` counts drifts, the
    last was at monotonic seconds `drifted_at`, `since_drift` examples ago. `anomalies` counts their beginnings.
    """

    def __init__(self, manifest: Manifest, target: Target, drift_settings: Drift | None, anomaly: Anomaly | None):
        self._manifest = manifest
        self._target = target
        self._by_class = scoring.is_classification(manifest.loss)
        self._classes = max(Labeller(manifest).classes, 1)
        self._majority = MajorityClass(self._classes)
        self._last_target = LastTarget()
        self._drift_settings, self._anomaly_settings = drift_settings, anomaly
        self.model_changed()
        self.prequential = Prequential()
        self.error: float | None = None
        self.drifts = 0
        self.drifted_at: float | None = None
        self.since_drift = 0
        self.anomalies = 0

    def model_changed(self) -> None:
        """What is usual for the errors is to be found out anew: those of another model say nothing of the stream."""
        drift_settings, anomaly = self._drift_settings, self._anomaly_settings
        self._drift = None if drift_settings is None else drift.make(drift_settings)
        self._anomaly = AnomalyScore(anomaly) if anomaly is not None and anomaly.enabled else None
        self.probability: float | None = None
        self.is_anomaly = False

    def guess(self, window: Window) -> Array | int | None:
        """What the baseline says of a window; None while there is nothing to guess from."""
        if self._target == "next":
            return window.last.reshape(self._manifest.label_shape)
        if self._target == "self":
            values = window.x.reshape(-1, len(window.last))
            means = values.mean(axis=0, dtype=np.float64)
            return np.broadcast_to(means, values.shape).reshape(self._manifest.label_shape)
        return self._majority.guess if self._by_class else self._last_target.guess

    def errors(self, windows: Sequence[Window], y: Array) -> list[float]:
        """The error of the prediction of each window, of which `y` [n, …] is the truth."""
        output = np.array([window.output for window in windows if window.output is not None])
        with np.errstate(over="ignore", invalid="ignore"):
            found: list[float] = scoring.errors(self._manifest.loss, output, y).tolist()
        return found

    def add(self, window: Window, y: Array, error: float) -> bool:
        """Count the `error` of a window whose truth `y` has come; whether the errors have drifted."""
        # In units of their own, errors of 1e3 may be small.
        worst = _WORST_ERROR * max(1.0, self.prequential.baseline)
        error = min(worst, error)  # in this order it is `worst` for NaN too
        baseline = self._baseline_error(window, y)
        if baseline is not None:
            self.prequential.add(error, min(baseline, worst), window.reading.monotonic)
        self.error = error
        if self._anomaly is not None:
            before = self.is_anomaly
            self.probability, self.is_anomaly = self._anomaly.update(error)
            self.anomalies += self.is_anomaly and not before
        self.since_drift += 1
        if self._drift is None or not self._drift.update(error):
            return False
        self.drifts += 1
        self.drifted_at, self.since_drift = window.reading.monotonic, 0
        return True

    def state(self) -> dict[str, Any]:
        """Plain values for `restore`."""
        return {
            "prequential": self.prequential.state(),
            "majority": self._majority.state(),
            "drift": None if self._drift is None else self._drift.state(),
            "anomaly": None if self._anomaly is None else self._anomaly.state(),
            "counts": [self.drifts, self.since_drift, self.anomalies],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises ValueError, KeyError or TypeError, and changes nothing, when it is damaged."""
        prequential, majority = Prequential(), MajorityClass(self._classes)
        prequential.restore(state["prequential"])
        majority.restore(state["majority"])
        counts = state["counts"]
        if len(counts) != 3 or not all(isinstance(count, int) and 0 <= count < 2**63 for count in counts):
            raise ValueError("the counts of drifts and anomalies are none")
        self.prequential, self._majority = prequential, majority
        self.drifts, self.since_drift, self.anomalies = counts
        for part, name in ((self._drift, "drift"), (self._anomaly, "anomaly")):
            if part is not None and state.get(name) is not None:
                try:
                    part.restore(state[name])
                except ValueError as error:  # its settings were changed
                    LOG.info("the detector of %s starts anew: %s", name, error)

    def _baseline_error(self, window: Window, y: Array) -> float | None:
        guess, loss = window.guess, self._manifest.loss
        if self._target == "label" and not self._by_class:
            self._last_target.add(y)
        if guess is None:
            return None
        if isinstance(guess, int):
            label = int(scoring.classes_of(loss, y[np.newaxis])[0])
            self._majority.add(label)
            return float(guess != label)
        if self._by_class:
            wrong = scoring.classes_of(loss, guess[np.newaxis]) != scoring.classes_of(loss, y[np.newaxis])
            return float(wrong.mean())
        return float(np.abs(y.astype(np.float64) - guess).mean())
