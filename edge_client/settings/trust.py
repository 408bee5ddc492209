"""Which models the device believes."""

from dataclasses import dataclass
from pathlib import Path

from edge_client.settings.limits import at_least


@dataclass(frozen=True, slots=True)
class Trust:
    """`[trust]`: what a model from the server must prove.

    With `key` (a PEM file, Ed25519 public key, made by `pollen sign-key`) bundles, weights and inference graphs must be
    signed by its owner.
    A new bundle is on trial. The device goes back to the one before it, and refuses the new one from then on, when its
    error rises above `explodes_at` times the error before, the baseline's and that which it began with; or when it is
    still above `explodes_at` times the first two after `trial_samples` scored windows and a training.
    """

    key: Path | None = None
    trial_samples: int = 200
    explodes_at: float = 4.0

    def __post_init__(self) -> None:
        at_least(1, trial_samples=self.trial_samples)
        at_least(1.0, explodes_at=self.explodes_at)
