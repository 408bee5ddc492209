"""What a person may ask of a demo."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `pollen demo`. `model` and `data` None: the default model, live telemetry."""

    devices: int = 6
    minutes: float = 3.0
    model: Path | None = None
    data: Path | None = None
    cut_device: bool = True
    output: Path = Path("runs")
    seed: int = 1

    @property
    def seconds(self) -> float:
        """How long the fleet learns."""
        return self.minutes * 60
