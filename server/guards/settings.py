"""What the admission guard is told: `GuardSettings` in Python, `[guard]` in server.toml."""

from dataclasses import dataclass
from typing import Literal, get_args

from server.rules import options

NormBound = Literal["clip", "refuse", "off"]

MAX_WINDOW = 10_000
MOST_SAMPLES = 2**40  # beyond it a float64 mean of samples would lose whole numbers


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """`[guard]`: which updates are refused beside those that do not fit the model.

    updates_per_minute: of each device, by the server's clock, after the first `burst` (0: as many as it likes).
    norm: what becomes of a delta longer than `norm_factor` times the running median of the L2 norms of those
    `norm_window` devices that sent last: scaled down to that bound (clip), refused, or nothing (off).
    cosine_least: a delta is refused when its cosine with the average of those admitted is below it (-1: off; on, it
    takes the memory of one more model); each delta moves that average by `cosine_step`.
    warm_up: updates before norms and cosines are judged.
    most_samples: what an update may claim to have learned from. Raises ValueError naming the option.

    The bound of ten medians spares what is honest: a delta grows far more slowly than its number of steps. One that
    was learned offline in 400 times the usual steps was seen to be 4 to 9 times as long (MotionSense, an MLP, devices
    of one subject each; the longest 12 times), and beyond the bound it keeps its direction.
    """

    updates_per_minute: float = 0.0
    burst: int = 10
    norm: NormBound = "clip"
    norm_factor: float = 10.0
    norm_window: int = 100
    warm_up: int = 20
    cosine_least: float = -1.0
    cosine_step: float = 0.05
    most_samples: int = 100_000_000

    def __post_init__(self) -> None:
        options.choice("norm", self.norm, get_args(NormBound))
        options.number("updates_per_minute", self.updates_per_minute)
        options.number("norm_factor", self.norm_factor, least=1.0)
        options.number("cosine_least", self.cosine_least, least=-1.0, most=1.0)
        options.number("cosine_step", self.cosine_step, above=True, most=1.0)
        options.whole("burst", self.burst)
        options.whole("norm_window", self.norm_window, least=3, most=MAX_WINDOW)
        options.whole("warm_up", self.warm_up)
        options.whole("most_samples", self.most_samples, least=1, most=MOST_SAMPLES)

    @property
    def judges_cosine(self) -> bool:
        """Whether deltas are compared with the average of those admitted."""
        return self.cosine_least > -1.0
