"""The sensor's thread: reads on time, stamps, and never waits for the learner."""

import logging
import math
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.clock import Clock
from edge_client.sensors import Channel, EndOfStreamError, Options, Sensor
from edge_client.sensors.screening import Counters, Screening
from edge_client.settings.sensing import Sensor as SensorSettings
from pollen.errors import SensorError, SettingsError

LOG = logging.getLogger(__name__)

RETRY_MIN_S: Final = 0.5
RETRY_MAX_S: Final = 60.0
STOP_S: Final = 2.0
OPENING_S: Final = 10.0
QUEUED_VALUES: Final = 2**20  # 4 MiB
WARN_EVERY_S: Final = 60.0
SILENT_S: Final = 60.0
SILENT_PERIODS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A reading with its time: `monotonic` and `wall` in seconds, `values` float32 [k, C], finite and in range.

    `number` grows by 1 from one reading to the next; by more where there is a gap between them. `synchronised`:
    `wall` was known to be right. `time`: by the sensor's own clock, where it has one.
    """

    number: int
    monotonic: float
    wall: float
    values: npt.NDArray[np.float32]
    label: float | int | None
    synchronised: bool = False
    time: float | None = None


class Sampler:
    """Reads a sensor on time, by the monotonic clock, into a queue that drops its oldest when full.

    A sensor that raises anything is closed and opened again with back-off, for ever; one whose read never returns
    is reported. `wake` is set whenever something was added. `channels` are those of the samples last taken: a sensor
    may come back with others.
    """

    def __init__(
        self,
        opener: Callable[[Options], Sensor],
        settings: SensorSettings,
        *,
        clock: Clock,
        wake: threading.Event,
    ) -> None:
        self._opener = opener
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._queue: deque[Sample] = deque()
        self._queued_values = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sensor: Sensor | None = None
        self._opened: tuple[Channel, ...] = ()
        self._screening: Screening | None = None
        self._number = 0
        self._heard_at = clock.monotonic()
        self._warned_at = -math.inf
        self._warned_of: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._said, self._said_at = "", -math.inf  # the last failure in the log
        self._said_opened_at = -math.inf
        self._opened_once = threading.Event()  # or failed to
        self._unusable: SettingsError | None = None
        self._left_alone = False
        self.is_silent = False
        self.channels: tuple[Channel, ...] = ()
        self.counters = Counters()
        self.ended = False

    @property
    def silent_s(self) -> float:
        """Seconds since the last reading came, or since the start; 0 once a recording has ended."""
        return 0.0 if self.ended else self._clock.monotonic() - self._heard_at

    def vitals(self) -> dict[str, float]:
        """The counters by name."""
        counted = self.counters
        return {
            "samples_skipped": counted.skipped,
            "samples_dropped": counted.dropped,
            "sensor_failures": counted.failures,
            "sensor_gaps": counted.gaps,
            "sensor_held_values": counted.held,
            "sensor_duplicates": counted.duplicates,
            "sensor_clock_faults": counted.clock_faults,
            "sensor_stuck_channels": counted.stuck_channels,
            "sensor_silent_s": self.silent_s,
            "sampling_jitter_s": counted.largest_jitter_s,
        }

    def start(self) -> None:
        """Start the thread, which opens the sensor.

        Raises SettingsError when the options can't be used; what fails otherwise is tried again later. An opening that
        hangs in a driver is waited for no longer than OPENING_S.
        """
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()
        if not self._opened_once.wait(OPENING_S):
            LOG.warning("sensor: it isn't open after %.0f s; going on without it", OPENING_S)
            self._left_alone = True
        if self._unusable is not None:
            raise self._unusable

    def stop(self) -> None:
        """Stop sampling and close the sensor."""
        self._stop.set()
        if self._thread is not None:
            # A read that hangs in a driver must not keep the agent from stopping; the thread is a daemon.
            self._thread.join(timeout=STOP_S)

    def take(self, most: int) -> list[Sample]:
        """Remove and return the oldest samples, at most `most`; sets `channels`."""
        self._watch()
        with self._lock:
            self.channels = self._opened
            taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self._queued_values -= sum(sample.values.size for sample in taken)
        return taken

    def _open(self) -> None:
        self._sensor = self._opener(self._settings.options)
        channels = tuple(self._sensor.channels)
        _check(channels)
        how = self._settings
        self._screening = Screening(
            channels,
            period_s=how.period_s,
            hold_readings=how.hold_readings,
            stuck_s=how.stuck_s,
            counters=self.counters,
        )
        with self._lock:
            if channels != self._opened:
                if self._opened:
                    LOG.warning("sensor: it came back with other channels: %s", ", ".join(map(_described, channels)))
                self.counters.dropped += len(self._queue)
                self._queue.clear()
                self._queued_values = 0
            self._opened = channels

    def _open_first(self) -> bool:
        """Open the sensor; False when its options can't be used and `start` still waits to hear so."""
        try:
            self._open()
        except SettingsError as error:
            self._unusable = error
        except BaseException as error:  # noqa: BLE001 - see _run
            self._report(error)
            self._close()
        self.channels = self._opened
        self._opened_once.set()
        if self._unusable is None:
            return True
        if self._left_alone:
            self._report(self._unusable)
        return self._left_alone

    def _run(self) -> None:
        if not self._open_first():
            return
        due = self._clock.monotonic() + self._settings.phase_s + self._settings.period_s
        back_off = RETRY_MIN_S
        if self._sensor is None:
            due, back_off = self._clock.monotonic() + back_off, 2 * back_off
        while not self._clock.wait(self._stop, due - self._clock.monotonic()):
            late = self._clock.monotonic() - due
            self.counters.largest_jitter_s = max(self.counters.largest_jitter_s, late)
            try:
                if self._sensor is None:
                    self._open()
                    self._say_opened()
                self._read()
                back_off = RETRY_MIN_S
                due = self._next_due(due)
            except EndOfStreamError:
                LOG.info("the sensor's stream has ended")
                self.ended = True
                break
            except BaseException as error:  # noqa: BLE001 - a user's sensor may raise anything, SystemExit too
                self._report(error)
                self._close()
                self._skip_number()  # what was missed is a gap
                due = self._clock.monotonic() + back_off
                back_off = min(2 * back_off, RETRY_MAX_S)
        self._close()

    def _next_due(self, due: float) -> float:
        """The next multiple of the period that isn't over yet: a late reading shifts none of the later ones."""
        late = self._clock.monotonic() - due
        period = self._settings.period_s
        return due + period * (1 + max(0, int(late / period)))

    def _read(self) -> None:
        """Take one reading, if there is one."""
        sensor, screening = self._sensor, self._screening
        reading = None if sensor is None else sensor.read()
        if reading is None or screening is None:
            return
        now = self._clock.monotonic()
        self._heard_at = now
        screened = screening.screen(reading, now)
        self._warn(screening.missing, screening.stuck, now)
        if screened is None:
            return
        if not screened.follows:
            self._skip_number()
        self._put(
            Sample(
                self._number,
                now,
                self._clock.wall(),
                screened.values,
                screened.label,
                bool(self._clock.synchronised()),
                screened.time,
            )
        )
        self._number += 1

    def _put(self, sample: Sample) -> None:
        with self._lock:
            self._queue.append(sample)
            self._queued_values += sample.values.size
            while len(self._queue) > self._settings.queue or self._queued_values > QUEUED_VALUES:
                self._queued_values -= self._queue.popleft().values.size
                self.counters.dropped += 1
        self._wake.set()

    def _skip_number(self) -> None:
        self._number += 1
        self.counters.gaps += 1

    def _warn(self, missing: tuple[str, ...], stuck: tuple[str, ...], now: float) -> None:
        """Say which channels give nothing usable: when others do, and at most once a minute."""
        if (missing, stuck) == self._warned_of or now - self._warned_at < WARN_EVERY_S:
            return
        self._warned_of = (missing, stuck)
        if missing or stuck:
            self._warned_at = now
        if missing:
            LOG.warning("sensor: no usable value from %s; readings are skipped", ", ".join(missing))
        if stuck:
            LOG.warning("sensor: %s unchanged for %g s; stuck?", ", ".join(stuck), self._settings.stuck_s)

    def _watch(self) -> None:
        """Say once when nothing has come for long; a read that hangs in a driver can't be ended from here."""
        long = self.silent_s > max(SILENT_S, SILENT_PERIODS * self._settings.period_s)
        if long and not self.is_silent:
            LOG.warning("sensor: no reading for %.0f s; check its cable", self.silent_s)
        self.is_silent = long

    def _report(self, error: BaseException) -> None:
        """Count a failure, and say it unless the same one was said less than a minute ago: logs lie on the card."""
        self.counters.failures += 1
        # Copes with what can't be shown, too.
        said, now = traceback.format_exception_only(error)[-1], self._clock.monotonic()
        if said == self._said and now - self._said_at < WARN_EVERY_S:
            return
        self._said, self._said_at = said, now
        if isinstance(error, SensorError | SettingsError):
            LOG.warning("sensor: %s; it will be opened again", error)
        else:
            LOG.warning("sensor failed with %s; it will be opened again", type(error).__name__, exc_info=error)

    def _say_opened(self) -> None:
        """Say it at most once a minute, see `_report`."""
        now = self._clock.monotonic()
        if now - self._said_opened_at >= WARN_EVERY_S:
            self._said_opened_at = now
            LOG.info("sensor opened again")

    def _close(self) -> None:
        if self._sensor is None:
            return
        try:
            self._sensor.close()
        except BaseException as error:
            LOG.warning("sensor could not be closed: %s", error.__class__.__name__, exc_info=error)
        self._sensor = None


def _check(channels: tuple[Channel, ...]) -> None:
    """Raise SensorError unless `channels` describes readings."""
    names = [channel.name for channel in channels]
    if not names or "" in names or len(set(names)) < len(names):
        raise SensorError(f"its channels are named {names}; give each a name of its own")
    for channel in channels:
        if not channel.low <= channel.high:
            raise SensorError(f"channel {channel.name}: low = {channel.low} must be at most high = {channel.high}")


def _described(channel: Channel) -> str:
    return f"{channel.name} [{channel.unit}]"
