"""The memory of the learner across restarts: the newest samples, the reservoir, and what was learned of the stream.

Samples are written in batches, one transaction each, so that a flash card lives: a power cut loses those since the
last one, and nothing else. After a restart the learner's examples are made again from the samples, so that they fit
whichever model there is; only the reservoir's are kept as they were. What is damaged is left out and counted.
"""

import logging
import math
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edge_client import sqlite_file
from edge_client.ballast import Ballast
from edge_client.clock import Clock
from edge_client.learning import sample_block
from edge_client.learning.learner import Learner
from edge_client.learning.replay_buffer import Slots
from edge_client.learning.stream_database import LATE_LABELS, Stored, StreamDatabase
from edge_client.sensors import Channel
from edge_client.sensors.sampling import Sample
from edge_client.settings import Learner as LearnerSettings
from edge_client.settings import Storage
from pollen import cbor
from pollen.errors import MessageError
from pollen.manifest import Manifest

LOG = logging.getLogger(__name__)

BATCH_READINGS: Final = 4096  # so many, or
BATCH_VALUES: Final = 2**16  # so many values, are written before flush_s is over
REFILL_SAMPLES: Final = 100_000  # at most, so that a start doesn't take minutes
KEPT_BYTES: Final = 2**20  # of samples are kept for the next model, which may need more of them than this one
LEARNED_FLUSHES: Final = 6  # flushes between two writes of what was learned,
LEARNED_BYTES_A_DAY: Final = 4e6  # or more of them where it is large
DELETED_BLOCKS: Final = 32  # are deleted together, or an eighth, since each deletion writes pages of its own
RESERVOIR_FLUSHES: Final = 36  # between two of the reservoir, whose changes lie scattered over the file
_STATE_LIMIT_BYTES: Final = 2**20
# Far enough apart that neither a window nor a label reaches from one life of the process to the next.
_RUN_NUMBERS: Final = 2**40
_RUN_SECONDS: Final = 1e9


class StreamStore:
    """The database at `path`. Used by one thread; no method raises: what can't be kept is lost at a restart, no more.

    While the disk is full (`ballast` is missing) nothing is written; `dropped` counts samples that were not.
    """

    def __init__(self, path: Path, settings: Storage, learner: LearnerSettings, ballast: Ballast, clock: Clock) -> None:
        self._path = path
        self._settings = settings
        self._how = learner
        self._ballast = ballast
        self._clock = clock
        self._database: StreamDatabase | None = None
        self._pending: list[Sample] = []
        self._pending_values = 0
        self._late: list[tuple[float, float, float]] = []
        self._channels: tuple[Channel, ...] = ()
        self._learner: Learner | None = None
        self._layout = b""
        self._enough = 0  # samples, of target "label" readings with one, that fill the ring
        self._written: Slots | None = None  # serial numbers of the reservoir's examples on disk
        self._drifts = 0  # of the learner, when the reservoir was written
        self._learned_due = self._reservoir_due = 0.0
        self._learned_wait = self._reservoir_wait = settings.flush_s
        self._problem = ""
        self._damaged = 0  # in databases that were put aside since
        self.dropped = 0
        if settings.keep:
            self._open()

    @property
    def samples(self) -> int:
        """Samples on disk."""
        return 0 if self._database is None else sum(stored.samples for stored in self._database.blocks)

    @property
    def damaged(self) -> int:
        """Rows that were left out since their checksum was wrong."""
        return self._damaged + (0 if self._database is None else self._database.damaged)

    @property
    def problem(self) -> str:
        """Why samples can't be written now; "": they can."""
        return self._problem

    def use_channels(self, channels: Sequence[Channel]) -> None:
        """The samples from now on are of these channels; those of others are of no use any more."""
        if tuple(channels) == self._channels or not self._settings.keep:
            return
        self.flush()
        self._channels = tuple(channels)
        names = repr([(channel.name, channel.unit) for channel in channels]).encode()
        database = self._database
        try:
            if database is None or database.state("channels") == names:
                return
            with database.transaction():
                database.delete_all()
                database.put_state("channels", names)
            database.blocks.clear()
            self._written = None
        except sqlite3.Error as error:
            self._failed(error)

    def attach(self, learner: Learner, manifest: Manifest) -> None:
        """Keep `learner`'s memory from now on; a new one first gets what is kept here, as far as it fits."""
        if learner is self._learner or not self._settings.keep:
            return
        self.flush()
        is_first, self._learner = self._learner is None, learner
        self._layout = _layout(manifest, self._how)
        self._enough = _enough(learner, manifest, self._how, len(self._channels))
        self._learned_wait = self._reservoir_wait = self._settings.flush_s
        self._learned_due, self._reservoir_due, self._written = 0.0, 0.0, None
        database = self._database
        if database is None:
            return
        try:
            relearn = is_first and not self._restore_state(database, learner)
            if is_first:
                self._restore_reservoir(database, learner)
            for samples in self._newest(database):
                learner.refill(samples, relearn=relearn)
            if is_first:
                learner.refilled()
            self._drifts = learner.drifts
        except sqlite3.Error as error:
            self._failed(error)
        LOG.info("%d examples from the %d samples on disk", len(learner.buffer), self.samples)

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep `samples`, of the channels in use, with the next flush."""
        if not self._settings.keep:
            return
        self._pending += samples
        self._pending_values += sum(sample.values.size for sample in samples)
        if len(self._pending) >= BATCH_READINGS or self._pending_values >= BATCH_VALUES:
            self.flush()

    def label(self, label: float, first: float, last: float) -> None:
        """A label came late, for the readings of monotonic times in [first, last]."""
        if self._settings.keep and len(self._late) < LATE_LABELS:
            self._late.append((first, last, label))

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; when it is the `last` time, also what was learned, however short ago it was written."""
        samples, late = self._pending, self._late
        self._pending, self._pending_values, self._late = [], 0, []
        forgot = self._learner is not None and self._learner.drifts != self._drifts
        if last or forgot:  # what the learner has forgotten must not be there again after a restart
            self._learned_due = self._reservoir_due = -math.inf
        learned = self._learner is not None and self._clock.monotonic() >= self._learned_due
        if not self._settings.keep or not (samples or late or learned):
            return
        has_room = self._ballast.make() or not self._ballast.missing
        if self._database is None and has_room:
            self._open()
        database = self._database
        try:
            if not has_room:
                self._report("the disk is full")
            elif database is not None:
                self._write(database, samples, late, self._learner if learned else None)
                samples = []
        except sqlite3.Error as error:
            self._failed(error)
        self.dropped += sum(len(sample.values) for sample in samples)

    def close(self) -> None:
        """Write what waits and close the database."""
        self.flush(last=True)
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write(
        self,
        database: StreamDatabase,
        samples: Sequence[Sample],
        late: Sequence[tuple[float, float, float]],
        learner: Learner | None,
    ) -> None:
        """One transaction, and then what is known of it."""
        payload = sample_block.encode(samples) if samples else b""
        gone, added, written, size = self._not_needed(database, len(payload)), [], self._written, 0
        now = self._clock.monotonic()
        reservoir = learner is not None and now >= self._reservoir_due
        with database.transaction():
            if gone:  # first, for that makes room
                database.delete_blocks(gone[-1])
            if samples:
                count = sum(len(sample.values) for sample in samples)
                labels = sum(sample.label is not None for sample in samples)
                added.append(database.add_block(payload, count, labels))
            if late:
                database.add_late_labels(late)
            if learner is not None:
                size = self._write_state(database, learner)
                written = self._write_reservoir(database, learner) if reservoir else written
        for _ in gone:
            database.blocks.popleft()
        database.blocks += added
        if learner is not None:
            self._written = written
            # At first often: what a state of the first minute says is soon out of date.
            self._learned_wait = min(2 * self._learned_wait, LEARNED_FLUSHES * self._settings.flush_s)
            self._learned_due = now + max(self._learned_wait, size / LEARNED_BYTES_A_DAY * 86400)
        if reservoir:
            self._reservoir_wait = min(2 * self._reservoir_wait, RESERVOIR_FLUSHES * self._settings.flush_s)
            self._reservoir_due = now + self._reservoir_wait
            self._drifts = 0 if learner is None else learner.drifts
        if self._problem:
            LOG.info("%s: written again", self._path)
            self._problem = ""

    def _write_state(self, database: StreamDatabase, learner: Learner) -> int:
        """Write what was learned besides examples; its size."""
        state = cbor.encode(learner.state())
        database.put_state("learner", state)
        return len(state)

    def _write_reservoir(self, database: StreamDatabase, learner: Learner) -> Slots:
        """Write the reservoir's new examples; the serial numbers of those on disk then."""
        serials, known = learner.buffer.reservoir_serials(), self._written
        # Half of the room is for blocks.
        serials = serials[: self._settings.limit_bytes // 4 // learner.buffer.example_bytes]
        if known is None or len(serials) < len(known):
            database.delete_examples()
            known = serials[:0]
        for place, serial in enumerate(serials.tolist()):
            if place >= len(known) or known[place] != serial:
                database.put_example(place, serial, learner.buffer.reservoir_example(place))
        database.put_state("reservoir", cbor.encode(learner.buffer.reservoir_state()))
        database.put_state("layout", self._layout)
        return serials

    def _not_needed(self, database: StreamDatabase, more: int) -> list[Stored]:
        """The oldest blocks, as far as neither this model nor probably the next needs them, or `more` bytes have no
        room."""
        found: list[Stored] = []
        size = sum(stored.size_bytes for stored in database.blocks)
        useful = sum(self._useful(stored) for stored in database.blocks)
        room = self._settings.limit_bytes // 2  # the rest is for the reservoir, and for what is free between rows
        is_full = size + more >= room
        if is_full:
            room -= room // 8  # so that not every flush deletes
        for stored in database.blocks:
            useful -= self._useful(stored)
            spare = size - stored.size_bytes >= KEPT_BYTES and useful >= 2 * self._enough and self._learner is not None
            if not spare and size + more < room:
                break
            size -= stored.size_bytes
            found.append(stored)
        return found if is_full or len(found) >= min(DELETED_BLOCKS, len(database.blocks) // 8) else []

    def _useful(self, stored: Stored) -> int:
        return stored.labels if self._how.target == "label" else stored.samples

    def _restore_state(self, database: StreamDatabase, learner: Learner) -> bool:
        """Take up statistics and scores; whether they were there and whole."""
        try:
            state = database.state("learner")
            if state is not None:
                learner.restore(cbor.decode(state, _STATE_LIMIT_BYTES))
        except (ValueError, TypeError, AttributeError, MessageError) as error:
            LOG.warning("%s: statistics and scores start anew: %s", self._path, error)
            return False
        return state is not None

    def _restore_reservoir(self, database: StreamDatabase, learner: Learner) -> None:
        """Take up the reservoir of a model with such examples."""
        try:
            reservoir, examples = database.state("reservoir"), database.examples()
            if reservoir is not None and examples and database.state("layout") == self._layout:
                learner.buffer.restore_reservoir(examples, cbor.decode(reservoir, _STATE_LIMIT_BYTES))
        except (ValueError, TypeError, AttributeError, MessageError) as error:
            LOG.warning("%s: the reservoir starts anew: %s", self._path, error)

    def _newest(self, database: StreamDatabase) -> Iterator[list[Sample]]:
        """Block by block, oldest first, the newest samples, as many as fill the learner's ring."""
        chosen: list[Stored] = []
        useful = samples = 0
        for stored in reversed(database.blocks):
            if useful >= self._enough or samples >= REFILL_SAMPLES:
                break
            chosen.append(stored)
            useful += self._useful(stored)
            samples += stored.samples
        for stored in reversed(chosen):
            payload = database.payload(stored)
            if payload is None:
                continue
            try:
                block = sample_block.Block(payload)
            except ValueError as error:
                LOG.warning("%s: a block is left out: %s", self._path, error)
                continue
            for first, last, label in database.late_labels(stored.run, *block.span):
                block.give_label(label, first, last)
            runs = database.run - stored.run + 1  # those of this run too: what they left unfinished nobody predicted
            yield list(block.samples(number_shift=-runs * _RUN_NUMBERS, time_shift=-runs * _RUN_SECONDS))

    def _open(self) -> None:
        try:
            self._database = StreamDatabase(self._path, self._settings.limit_bytes)
        except (sqlite3.Error, OSError, sqlite_file.DamagedError) as error:
            self._report(str(error))
            return
        if self._channels:  # opened again, maybe empty
            channels, self._channels = self._channels, ()
            self.use_channels(channels)

    def _failed(self, error: sqlite3.Error) -> None:
        """Go on without what couldn't be written; a database that is damaged is opened anew, which puts it aside."""
        self._report(str(error))
        if self._database is not None and sqlite_file.is_damage(error) and not sqlite_file.is_full(error):
            self._damaged += self._database.damaged
            self._database.close()
            self._database = self._written = None

    def _report(self, problem: str) -> None:
        if not self._problem:
            LOG.error(
                "%s: can't be written (%s); samples since then are lost at a restart, learning goes on",
                self._path, problem,
            )  # fmt: skip
            self._problem = problem


def _layout(manifest: Manifest, settings: LearnerSettings) -> bytes:
    """What the examples of the reservoir depend on."""
    inputs = manifest.input_shape, manifest.input_dtype, manifest.input_below
    labels = manifest.label_shape, manifest.label_dtype, manifest.output_shape, manifest.loss.name
    return repr((inputs, labels, settings.target, settings.horizon, settings.standardise, settings.balanced)).encode()


def _enough(learner: Learner, manifest: Manifest, settings: LearnerSettings, channels: int) -> int:
    """Samples that make as many examples as the ring holds, of a stream without gaps."""
    length = math.ceil(math.prod(manifest.input_shape) / max(channels, 1))
    return learner.buffer.recent_capacity * max(settings.hop, 1) + length + settings.horizon
