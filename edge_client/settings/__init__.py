"""Settings of `pollen-edge`: one TOML file, a module here for each group of its tables."""

from dataclasses import dataclass, field
from pathlib import Path

from edge_client.settings.adapting import Anomaly, Drift
from edge_client.settings.labels import Labels
from edge_client.settings.learning import Learner, Target
from edge_client.settings.local import Local, Predictions
from edge_client.settings.network import Session, Upload
from edge_client.settings.policy import Policy
from edge_client.settings.sensing import Sensor
from edge_client.settings.storage import Storage
from edge_client.settings.training import Inference, Runtime, Training
from edge_client.settings.trust import Trust
from pollen.broker import Broker
from pollen.errors import SettingsError
from pollen.identity import is_name
from pollen.service import Logging

__all__ = [
    "Anomaly",
    "Drift",
    "EdgeSettings",
    "Inference",
    "Labels",
    "Learner",
    "Local",
    "Policy",
    "Predictions",
    "Runtime",
    "Sensor",
    "Session",
    "Storage",
    "Target",
    "Training",
    "Trust",
    "Upload",
]


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """All settings of one device. `device` is the name the broker authenticates (certificate CN or user name)."""

    device: str
    fleet: str
    model: str
    state_dir: Path = Path("/var/lib/pollen-edge")
    broker: Broker = field(default_factory=Broker)
    sensor: Sensor = field(default_factory=Sensor)
    labels: Labels = field(default_factory=Labels)
    learner: Learner = field(default_factory=Learner)
    drift: Drift = field(default_factory=Drift)
    anomaly: Anomaly = field(default_factory=Anomaly)
    storage: Storage = field(default_factory=Storage)
    training: Training = field(default_factory=Training)
    policy: Policy = field(default_factory=Policy)
    trust: Trust = field(default_factory=Trust)
    inference: Inference = field(default_factory=Inference)
    upload: Upload = field(default_factory=Upload)
    session: Session = field(default_factory=Session)
    local: Local = field(default_factory=Local)
    predictions: Predictions = field(default_factory=Predictions)
    logging: Logging = field(default_factory=Logging)

    def __post_init__(self) -> None:
        for name in ("device", "fleet", "model"):
            if not is_name(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
        if self.broker.username and self.broker.username != self.device:
            raise SettingsError(
                f"broker.username {self.broker.username!r} must be the device's name, {self.device!r}: "
                "the broker's access rules go by it"
            )
        if self.predictions.publish == "anomalies" and not self.anomaly.enabled:
            raise SettingsError('predictions.publish = "anomalies" needs anomaly.enabled = true')
