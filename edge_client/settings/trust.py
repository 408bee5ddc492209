"""Which models the device believes."""

from dataclasses import dataclass
from pathlib import Path

from edge_client.settings.limits import at_least


@dataclass(frozen=True, slots=True)
class Trust:
    """`[trust]`: what a model from the server must prove.

    With `key` (a PEM file, Ed25519 public key) bundles, weights and inference graphs must be signed by its owner.
    A new bundle is on trial for its first `trial_samples` scored windows: the device goes back to the one before it
    when its error rises above `explodes_at` times the larger of the old error and the baseline's.
    """

    key: Path | None = None
    trial_samples: int = 200
    explodes_at: float = 4.0

    def __post_init__(self) -> None:
        at_least(1, trial_samples=self.trial_samples)
        at_least(1.0, explodes_at=self.explodes_at)
