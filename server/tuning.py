"""Settings of one model that may change while it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from pollen.messages import Scalar
from server.guards import GuardSettings


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a model's merge loop, link and strategy go on by: see the tables of server.toml with these names."""

    task_config: Mapping[str, Scalar]
    task_ttl_s: float
    publish_interval_s: float
    update_bytes: int
    evaluation_interval_s: float
    federated_interval_s: float
    federated_fraction: float
    federated_deadline_s: float
    guard: GuardSettings
