"""Settings of `pollen-edge`: one TOML file, these tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pollen.broker import Broker
from pollen.encoding import Encoding
from pollen.errors import SettingsError
from pollen.identity import is_name
from pollen.messages import Scalar
from pollen.service import Logging

Target = Literal["next", "label"]
Runtime = Literal["auto", "litert", "tflite"]


def _at_least(minimum: float, **values: float) -> None:
    """Raise ValueError for the first value below `minimum`."""
    for name, value in values.items():
        if not value >= minimum:
            raise ValueError(f"{name} = {value} must be at least {minimum:g}")


@dataclass(frozen=True, slots=True)
class Sensor:
    """`[sensor]`: what is measured and how often.

    `kind` is "host", "replay" or the name of an entry point in the group "pollen.sensors"; `options` are that
    sensor's own. A reading is taken every `period_s` seconds, `phase_s` after the start; at most `queue` readings
    wait for the learner, then the oldest is dropped and counted.
    """

    kind: str = "host"
    period_s: float = 1.0
    phase_s: float = 0.0
    queue: int = 1024
    options: dict[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(0.0001, period_s=self.period_s)
        _at_least(0.0, phase_s=self.phase_s)
        _at_least(1, queue=self.queue)


@dataclass(frozen=True, slots=True)
class Learner:
    """`[learner]`: what is predicted, and how many examples are remembered.

    `target` "next" forecasts the reading after the window, "label" predicts the label that came with the window's
    last reading. `replay_samples`: examples in the replay buffer. `standardise`: per-channel running mean 0,
    variance 1, over about the last `memory_samples` samples. `hop`: samples between two windows; 0 means 1, and for
    labelled bursts the window's length.
    """

    target: Target = "next"
    replay_samples: int = 2000
    standardise: bool = True
    memory_samples: int = 10_000
    hop: int = 0

    def __post_init__(self) -> None:
        _at_least(1, replay_samples=self.replay_samples)
        _at_least(10, memory_samples=self.memory_samples)
        _at_least(0, hop=self.hop)


@dataclass(frozen=True, slots=True)
class Training:
    """`[training]`: when and how to train; a task's config overrides the first four.

    Train once `new_samples` examples have come since the last time, `epochs` passes over the replay buffer but at
    most `max_steps` optimizer steps, with FedProx's `proximal_mu` (0: off). The work is cut into slices of `slice_ms`
    milliseconds; `nice` is the training thread's niceness; `runtime` picks the interpreter.
    `fetch_s`: seconds to wait for the newest snapshot before training from the last one known.
    """

    new_samples: int = 64
    epochs: int = 1
    max_steps: int = 200
    proximal_mu: float = 0.0
    slice_ms: float = 20.0
    nice: int = 5
    runtime: Runtime = "auto"
    fetch_s: float = 5.0

    def __post_init__(self) -> None:
        _at_least(1, new_samples=self.new_samples, epochs=self.epochs, max_steps=self.max_steps)
        _at_least(0.0, proximal_mu=self.proximal_mu)
        _at_least(0.1, slice_ms=self.slice_ms, fetch_s=self.fetch_s)
        if not 0 <= self.nice <= 19:
            raise ValueError(f"nice = {self.nice} must be from 0 to 19")


@dataclass(frozen=True, slots=True)
class Upload:
    """`[upload]`: how updates travel.

    `encoding` of the delta (a task's config overrides it); `retry_s`: seconds without a receipt until an update is
    published again, growing tenfold; `snapshot_limit_bytes`: largest payload accepted from the server;
    `outbox_limit_bytes`: largest size of the outbox's database; `drain_s`: seconds to wait for receipts at a stop;
    `vitals_s`: seconds between vitals.
    """

    encoding: Encoding = "f32"
    retry_s: float = 60.0
    snapshot_limit_bytes: int = 64 * 2**20
    outbox_limit_bytes: int = 64 * 2**20
    drain_s: float = 10.0
    vitals_s: float = 10.0

    def __post_init__(self) -> None:
        _at_least(0.1, retry_s=self.retry_s)
        _at_least(1.0, vitals_s=self.vitals_s)
        _at_least(0.0, drain_s=self.drain_s)
        _at_least(2**16, snapshot_limit_bytes=self.snapshot_limit_bytes, outbox_limit_bytes=self.outbox_limit_bytes)


@dataclass(frozen=True, slots=True)
class Session:
    """`[session]`: the MQTT session.

    `expiry_s`: seconds the broker keeps it while the device is away; `will_delay_s`: seconds a lost connection may
    take to come back before the device counts as dead; a reconnect waits a random time up to a bound that grows from
    `reconnect_min_s` to `reconnect_max_s`.
    """

    expiry_s: int = 7 * 24 * 3600
    will_delay_s: int = 10
    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 120.0

    def __post_init__(self) -> None:
        _at_least(0, expiry_s=self.expiry_s, will_delay_s=self.will_delay_s)
        _at_least(0.01, reconnect_min_s=self.reconnect_min_s)
        _at_least(self.reconnect_min_s, reconnect_max_s=self.reconnect_max_s)
        if max(self.expiry_s, self.will_delay_s) > 2**32 - 1:  # MQTT 5, sections 3.1.2.11.2 and 3.1.3.2.2
            raise ValueError("expiry_s and will_delay_s must be below 2^32")


@dataclass(frozen=True, slots=True)
class Inference:
    """`[inference]`: whether to predict with the small graphs that the server may publish: "off", "always", or "auto":
    where they are quicker on this device. While the device knows newer weights of its own, those predict."""

    graph: Literal["off", "auto", "always"] = "off"


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """All settings of one device. `device` is the name the broker authenticates (certificate CN or user name)."""

    device: str
    fleet: str
    model: str
    state_dir: Path = Path("/var/lib/pollen-edge")
    broker: Broker = field(default_factory=Broker)
    sensor: Sensor = field(default_factory=Sensor)
    learner: Learner = field(default_factory=Learner)
    training: Training = field(default_factory=Training)
    upload: Upload = field(default_factory=Upload)
    inference: Inference = field(default_factory=Inference)
    session: Session = field(default_factory=Session)
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
