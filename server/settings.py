"""Settings of `pollen-server`; each class is a TOML table, times are seconds, sizes bytes."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pollen import bridge
from pollen.encoding import ENCODINGS
from pollen.http_settings import Http
from pollen.identity import check_name
from pollen.messages import Scalar
from pollen.service import Logging
from server.async_strategy import (
    AsynchronousStrategy,
    StalenessUnit,
    TooStale,
    check_cap,
    check_staleness,
    named_rule,
)
from server.bridge_service import Listen
from server.early_stop import EarlyStop, Mode, Source
from server.guards import GuardSettings
from server.inference_graphs import InferenceSettings
from server.privacy import Privacy, check_guard
from server.sample_weight import SampleWeighting
from server.store import Retention

MAX_TTL_S: Final = 2**31
MAX_UPDATE_BYTES: Final = bridge.MAX_MESSAGE_BYTES // 2
# What a device accepts: least, most, and whether it counts something.
TASK_NUMBERS: Final[dict[str, tuple[float, float, bool]]] = {
    "learning_rate": (1e-12, 1e3, False),
    "epochs": (1, 1000, True),
    "max_steps": (1, 100_000, True),
    "proximal_mu": (0.0, 1e6, False),
    "min_samples": (1, 2**31, True),
    "skip_below_norm": (0.0, 1e30, False),
    "skips": (0, 1000, True),
    "topk_share": (1e-6, 1.0, False),
}


@dataclass(frozen=True, slots=True)
class Merging:
    """`[merge]`: the rule by name, the rule's own options (see `server/rules/`), how samples weigh, how many published
    versions are kept as base models (`snapshots`), and staleness: counted in merges or seconds (`staleness_unit`), and
    whether an update beyond `max_staleness` (0: no maximum) is refused or damped (`too_stale`)."""

    rule: str = "adaptive"
    options: dict[str, Scalar] = field(default_factory=dict)
    sample_weighting: SampleWeighting = "linear"
    sample_weight_cap: float = 4.0
    snapshots: int = 32
    staleness_unit: StalenessUnit = "merges"
    max_staleness: float = 0.0
    too_stale: TooStale = "refuse"

    def __post_init__(self) -> None:
        if self.snapshots < 1:
            raise ValueError(f"snapshots = {self.snapshots} must be at least 1")
        check_cap(self.sample_weight_cap)
        check_staleness(self.staleness_unit, self.max_staleness, self.too_stale)
        named_rule(self.rule, self.options, "options.")

    def strategy(self, privacy: Privacy | None = None) -> AsynchronousStrategy:
        """The strategy that these settings describe. Raises ValueError where `privacy` does not go with them."""
        return AsynchronousStrategy(
            named_rule(self.rule, self.options),
            sample_weighting=self.sample_weighting,
            sample_weight_cap=self.sample_weight_cap,
            staleness_unit=self.staleness_unit,
            max_staleness=self.max_staleness or None,
            too_stale=self.too_stale,
            privacy=privacy,
        )


@dataclass(frozen=True, slots=True)
class Tasks:
    """`[task]`: `ttl_s` until an unanswered task is sent again; `config`: hyperparameters for the devices
    (learning_rate, epochs, max_steps, proximal_mu, min_samples: new examples to train on, skip_below_norm: train on
    rather than send a smaller update, skips: how often in a row, and encoding: f32, f16, q8, or topk with topk_share).
    """

    ttl_s: float = 600.0
    config: dict[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s <= MAX_TTL_S:
            raise ValueError(f"ttl_s = {self.ttl_s} must be above 0 and at most {MAX_TTL_S}")
        for name, value in self.config.items():
            _check_task_config(name, value)


def _check_task_config(name: str, value: Scalar) -> None:
    if name == "encoding":
        if value not in ENCODINGS:
            raise ValueError(f"config.encoding = {value!r} must be one of {', '.join(ENCODINGS)}")
        return
    if name not in TASK_NUMBERS:
        known = ", ".join(sorted([*TASK_NUMBERS, "encoding"]))
        raise ValueError(f"config.{name} is nothing a device knows; known: {known}")
    least, most, whole = TASK_NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"config.{name} = {value!r} must be {kind} from {least:.10g} to {most:.10g}")


@dataclass(frozen=True, slots=True)
class Publishing:
    """`[publish]`: at most one snapshot every `min_interval_s`."""

    min_interval_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_interval_s < math.inf:
            raise ValueError(f"min_interval_s = {self.min_interval_s} must be finite and not negative")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`[evaluation]`: every `interval_s` score the model on `data` (.npz with X and y), or with `hook`, a Python
    function `module:name` called with (version, {tensor name: array}) that returns (loss, {metric: value}). Every
    `federated_interval_s` (0: never) have `federated_fraction` of the devices that are online score it on data of their
    own, and wait for them up to `federated_deadline_s`."""

    data: Path | None = None
    hook: str = ""
    interval_s: float = 10.0
    federated_interval_s: float = 0.0
    federated_fraction: float = 1.0
    federated_deadline_s: float = 60.0

    def __post_init__(self) -> None:
        if self.data is not None and self.hook:
            raise ValueError("data and hook exclude each other; give one")
        if not 0 < self.interval_s < math.inf:
            raise ValueError(f"interval_s = {self.interval_s} must be above 0 and finite")
        if not 0 <= self.federated_interval_s < math.inf:
            raise ValueError(f"federated_interval_s = {self.federated_interval_s} must be finite and not negative")
        if not 0 < self.federated_fraction <= 1:
            raise ValueError(f"federated_fraction = {self.federated_fraction} must be above 0 and at most 1")
        if not 0 < self.federated_deadline_s < math.inf:
            raise ValueError(f"federated_deadline_s = {self.federated_deadline_s} must be above 0 and finite")


@dataclass(frozen=True, slots=True)
class Stopping:
    """`[stop]`: end the run after `train_time_s` seconds or `merges` merges since the start (0: never), when `metric`
    reaches `target`, or after `patience` evaluations in a row (0: never) that don't improve it by more than
    `min_delta`. `metric` is "loss" or a metric of the `evaluation`, "central" or "federated"; `mode` "min" or "max"
    says what is better where "auto", by the metric's name, does not know."""

    train_time_s: float = 0.0
    merges: int = 0
    metric: str = "loss"
    target: float | None = None
    patience: int = 0
    mode: Mode = "auto"
    min_delta: float = 0.0
    evaluation: Source = "central"

    def __post_init__(self) -> None:
        if not 0 <= self.train_time_s < math.inf:
            raise ValueError(f"train_time_s = {self.train_time_s} must be finite and not negative")
        if self.merges < 0:
            raise ValueError(f"merges = {self.merges} must not be negative")
        if self.patience < 0:
            raise ValueError(f"patience = {self.patience} must not be negative")
        self.early_stop()

    def early_stop(self) -> EarlyStop | None:
        """What to watch in the evaluations, None for nothing."""
        watched = EarlyStop(self.metric, self.target, self.patience or None, self.mode, self.min_delta, self.evaluation)
        return watched if self.patience or self.target is not None else None


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`[limits]`: the largest update that is read."""

    update_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.update_bytes <= MAX_UPDATE_BYTES:
            raise ValueError(f"update_bytes = {self.update_bytes} must be from 1 to {MAX_UPDATE_BYTES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What server.toml says of one model: in `[models.<name>]`, or at the top where there is one only. `bundle` is made
    by `pollen compile`; `signing_key`, by `pollen sign-key`, proves to devices whose model it is."""

    bundle: Path | None = None
    signing_key: Path | None = None
    merge: Merging = field(default_factory=Merging)
    task: Tasks = field(default_factory=Tasks)
    publish: Publishing = field(default_factory=Publishing)
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stopping = field(default_factory=Stopping)
    limits: UploadLimits = field(default_factory=UploadLimits)
    guard: GuardSettings = field(default_factory=GuardSettings)
    retention: Retention = field(default_factory=Retention)
    privacy: Privacy = field(default_factory=Privacy)
    inference: InferenceSettings = field(default_factory=InferenceSettings)

    def __post_init__(self) -> None:
        self.check_privacy()

    def check_privacy(self) -> None:
        """Raise ValueError where privacy is on and something else does not go with it."""
        if self.privacy.clip_norm:
            check_guard(self.guard)
            self.merge.strategy(self.privacy)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model to be served: `name` of its table ("" for the only one), its bundle's file, the folder of its state."""

    name: str
    bundle: Path
    folder: Path
    settings: ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ModelSettings):
    """All of server.toml. `state_dir` holds the state store and the history, with several models a folder for each;
    `models`: each takes from the top what it does not say itself."""

    state_dir: Path
    fleet: str = "default"
    listen: Listen = field(default_factory=Listen)
    http: Http = field(default_factory=Http)
    logging: Logging = field(default_factory=Logging)
    models: dict[str, ModelSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet")
        for name in self.models:
            check_name(name, "models")
        if self.bundle is not None and self.models:
            raise ValueError("bundle is for a single model; with [models.<name>] tables each of them has its own")
        self.check_privacy()
        self.served()

    def served(self) -> list[ServedModel]:
        """The models, in the file's order. Raises ValueError when one has no bundle."""
        if not self.models:
            return [_served("", self.bundle, self.state_dir, self)]
        return [_served(name, one.bundle, self.state_dir / name, one) for name, one in self.models.items()]


def _served(name: str, bundle: Path | None, folder: Path, settings: ModelSettings) -> ServedModel:
    if bundle is None:
        raise ValueError(f"{f'models.{name}.' if name else ''}bundle is missing; set it there or in the environment")
    return ServedModel(name, bundle, folder, settings)
