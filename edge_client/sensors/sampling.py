"""The sensor's thread: reads on time, stamps, and never waits for the learner."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.clock import Clock
from edge_client.sensors import Channel, EndOfStreamError, Options, Reading, Sensor
from pollen.errors import SensorError, SettingsError

LOG = logging.getLogger(__name__)

RETRY_MIN_S: Final = 0.5
RETRY_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A reading with its time: `monotonic` and `wall` in seconds, `values` float32 [k, C], all finite.

    `number` counts readings, also those skipped or dropped: a step of more than 1 is a gap.
    """

    number: int
    monotonic: float
    wall: float
    values: npt.NDArray[np.float32]
    label: float | int | None


class Sampler:
    """Reads a sensor every `period_s` on the monotonic clock into a queue that drops its oldest when full.

    A sensor that raises is closed and opened again with back-off, for ever. Readings with a value that is not
    finite, or of another shape than the sensor's channels, are skipped; `skipped` counts their samples, `dropped` the
    readings the queue had no room for. `wake` is set whenever something was added.
    """

    def __init__(
        self,
        opener: Callable[[Options], Sensor],
        options: Options,
        *,
        period_s: float,
        phase_s: float,
        queue: int,
        clock: Clock,
        wake: threading.Event,
    ) -> None:
        self._opener = opener
        self._options = options
        self._period_s = period_s
        self._phase_s = phase_s
        self._clock = clock
        self._wake = wake
        self._queue: deque[Sample] = deque()
        self._room = queue
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sensor: Sensor | None = None
        self._taken = 0
        self.channels: tuple[Channel, ...] = ()
        self.skipped = 0
        self.dropped = 0
        self.failures = 0
        self.ended = False

    def start(self) -> None:
        """Open the sensor and start the thread.

        Raises SettingsError when the options can't be used; hardware that isn't there is tried again later.
        """
        try:
            self._open()
        except SensorError as error:
            self._report(error)
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and close the sensor."""
        self._stop.set()
        if self._thread is not None:
            # A read that hangs in a driver must not keep the agent from stopping; the thread is a daemon.
            self._thread.join(timeout=2.0)

    def take(self, most: int) -> list[Sample]:
        """Remove and return the oldest samples, at most `most`."""
        with self._lock:
            return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def _open(self) -> None:
        self._sensor = self._opener(self._options)
        self.channels = tuple(self._sensor.channels)

    def _run(self) -> None:
        due = self._clock.monotonic() + self._phase_s + self._period_s
        back_off = RETRY_MIN_S
        while not self._clock.wait(self._stop, due - self._clock.monotonic()):
            try:
                if self._sensor is None:
                    self._open()
                    LOG.info("sensor opened again")
                self._read()
                back_off = RETRY_MIN_S
                due = self._next_due(due)
            except EndOfStreamError:
                LOG.info("the sensor's stream has ended")
                self.ended = True
                break
            except Exception as error:  # noqa: BLE001 - a user's sensor may raise anything; it must not end the agent
                self._report(error)
                self._close()
                self._taken += 1  # what was missed is a gap
                due = self._clock.monotonic() + back_off
                back_off = min(2 * back_off, RETRY_MAX_S)
        self._close()

    def _next_due(self, due: float) -> float:
        """The next multiple of the period that isn't over yet: a late reading shifts none of the later ones."""
        late = self._clock.monotonic() - due
        return due + self._period_s * (1 + max(0, int(late / self._period_s)))

    def _read(self) -> None:
        """Take one reading, if there is one."""
        reading = None if self._sensor is None else self._sensor.read()
        if reading is None:
            return
        number = self._taken
        self._taken += 1
        values = self._checked(reading)
        if values is None:
            return
        sample = Sample(number, self._clock.monotonic(), self._clock.wall(), values, reading.label)
        with self._lock:
            if len(self._queue) >= self._room:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(sample)
        self._wake.set()

    def _checked(self, reading: Reading) -> npt.NDArray[np.float32] | None:
        """The reading's values as float32 [k, C], None (and counted) when they can't be used."""
        values = np.asarray(reading.values, np.float32)
        if values.ndim != 2 or values.shape[1] != len(self.channels) or len(values) == 0:
            raise SensorError(f"a reading of shape {values.shape} from {len(self.channels)} channels; want [k, C]")
        label = reading.label
        if not np.isfinite(values).all() or (label is not None and not np.isfinite(label)):
            self.skipped += len(values)
            return None
        return values

    def _report(self, error: Exception) -> None:
        self.failures += 1
        if isinstance(error, SensorError | SettingsError):
            LOG.warning("sensor: %s; it will be opened again", error)
        else:
            LOG.warning("sensor failed with %s; it will be opened again", error.__class__.__name__, exc_info=error)

    def _close(self) -> None:
        if self._sensor is None:
            return
        try:
            self._sensor.close()
        except Exception as error:  # noqa: BLE001 - see _run
            LOG.warning("sensor could not be closed: %s", error)
        self._sensor = None
