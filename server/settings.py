"""Settings of `pollen-server`; each class is a TOML table, times are seconds, sizes bytes."""

from dataclasses import dataclass, field
from pathlib import Path

from pollen.identity import check_name
from pollen.messages import Scalar
from pollen.service import Logging
from server.bridge_service import Listen
from server.sample_weight import SampleWeighting


@dataclass(frozen=True, slots=True)
class Merging:
    """`[merge]`: the rule by name, the rule's own options (see `server/rules/`), how samples weigh, and how many
    published versions are kept as base models (`snapshots`)."""

    rule: str = "fedasync"
    options: dict[str, Scalar] = field(default_factory=dict)
    sample_weighting: SampleWeighting = "linear"
    sample_weight_cap: float = 4.0
    snapshots: int = 32

    def __post_init__(self) -> None:
        if self.snapshots < 1:
            raise ValueError(f"snapshots = {self.snapshots} must be at least 1")


@dataclass(frozen=True, slots=True)
class Tasks:
    """`[task]`: `ttl_s` until an unanswered task is sent again; `config`: hyperparameters for the devices
    (learning_rate, epochs, max_steps, proximal_mu, encoding, new_samples)."""

    ttl_s: float = 600.0
    config: dict[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ttl_s <= 0:
            raise ValueError(f"ttl_s = {self.ttl_s} must be above 0")


@dataclass(frozen=True, slots=True)
class Publishing:
    """`[publish]`: at most one snapshot every `min_interval_s`."""

    min_interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`[evaluation]`: every `interval_s` score the model on `data` (.npz with X and y), or with `hook`, a Python
    function `module:name` called with (version, {tensor name: array}) that returns (loss, {metric: value})."""

    data: Path | None = None
    hook: str = ""
    interval_s: float = 10.0

    def __post_init__(self) -> None:
        if self.data is not None and self.hook:
            raise ValueError("data and hook exclude each other; give one")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`[limits]`: the largest update that is read."""

    update_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """All of server.toml. `bundle` is made by `pollen compile`; `state_dir` holds the state store and the history."""

    bundle: Path
    state_dir: Path
    fleet: str = "default"
    listen: Listen = field(default_factory=Listen)
    merge: Merging = field(default_factory=Merging)
    task: Tasks = field(default_factory=Tasks)
    publish: Publishing = field(default_factory=Publishing)
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: UploadLimits = field(default_factory=UploadLimits)
    logging: Logging = field(default_factory=Logging)

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet")
