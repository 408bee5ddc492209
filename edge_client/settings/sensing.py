"""What is measured."""

from dataclasses import dataclass, field

from edge_client.settings.limits import at_least
from pollen.messages import Scalar


@dataclass(frozen=True, slots=True)
class Sensor:
    """`[sensor]`: what is measured and how often.

    `kind` is a built-in sensor (docs/sensors.md) or the name of an entry point in the group "pollen.sensors";
    `options` are that sensor's own. A reading is taken every `period_s` seconds, `phase_s` after the start; at most
    `queue` readings wait for the learner, then the oldest is dropped and counted. A value that is missing or impossible
    is replaced by the channel's last good one, for at most `hold_readings` readings (of a burst, samples) running; then
    the readings are skipped. A channel that has not changed for `stuck_s` seconds is reported as stuck (0: never).
    """

    kind: str = "host"
    period_s: float = 1.0
    phase_s: float = 0.0
    queue: int = 1024
    hold_readings: int = 3
    stuck_s: float = 0.0
    options: dict[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(0.0001, period_s=self.period_s)
        at_least(0.0, phase_s=self.phase_s, stuck_s=self.stuck_s)
        at_least(1, queue=self.queue)
        at_least(0, hold_readings=self.hold_readings)
