"""What is learned from the stream."""

from dataclasses import dataclass
from typing import Final, Literal

from edge_client.settings.limits import at_least

Target = Literal["next", "label", "self"]

LONGEST_HORIZON: Final = 1000  # that many windows wait for their truth


@dataclass(frozen=True, slots=True)
class Learner:
    """`[learner]`: what is predicted, and how many examples are remembered.

    `target` "next" forecasts the sample `horizon` samples after the window, "label" predicts the label of the
    window's last reading, "self" rebuilds the window (an autoencoder). `replay_samples`: examples in the replay buffer,
    `reservoir_share` of them a fair sample of the whole stream, the rest the newest; `balanced`: the reservoir holds
    as many of each class. `standardise`: per-channel running mean 0, variance 1, over about the last `memory_samples`
    samples. `hop`: samples between two windows; 0 means 1, and for labelled bursts the window's length.
    """

    target: Target = "next"
    horizon: int = 1
    replay_samples: int = 2000
    reservoir_share: float = 0.25
    balanced: bool = False
    standardise: bool = True
    memory_samples: int = 10_000
    hop: int = 0

    def __post_init__(self) -> None:
        at_least(1, replay_samples=self.replay_samples, horizon=self.horizon)
        at_least(10, memory_samples=self.memory_samples)
        at_least(0, hop=self.hop)
        if self.horizon > LONGEST_HORIZON:
            raise ValueError(f"horizon = {self.horizon} must be at most {LONGEST_HORIZON}")
        if not 0.0 <= self.reservoir_share < 1.0:
            raise ValueError(f"reservoir_share = {self.reservoir_share} must be from 0 to below 1")
