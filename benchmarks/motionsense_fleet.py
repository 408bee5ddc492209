"""The fleet of benchmarks.motionsense in virtual time: real devices' code and real merge rules, simulated clocks.

Each device streams one person's recordings in the order in which they were made, at the speed at which they were made,
with pauses between them that it draws. It works on a task as soon as it has enough new examples; a training takes a Pi
of its kind its time, the network its own. What all this costs the machine that simulates it does not matter.
"""

import heapq
import itertools
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.motionsense_device import How, Labels, Sent, StreamingDevice, Windows
from benchmarks.motionsense_merging import MergeLoop
from benchmarks.simulated_fleet import MOTIONSENSE
from pollen.bundle import Bundle, Floats

HERTZ: Final = 50.0
LONG: Final = 10  # trials below are streamed, those above are the test
START_S: Final = 60.0  # people begin within
PAUSE_S: Final = 20.0  # mean of the pauses between recordings
TRAINING_S: Final = 2.0  # of a quick device, for its jittered network time too
SLOW: Final = 3.2  # times longer on every second device, as a Pi 4 is beside a Pi 5


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """What one device sees: readings [n, k, C] in order with labels [n], the trial [n] of each; and what it is tested
    on, windows [m, T, C] with labels [m]."""

    readings: Windows
    labels: Labels
    trials: Labels
    test: Windows
    test_labels: Labels

    @property
    def windows(self) -> int:
        """How many windows the readings make; the first of a trial needs several of them."""
        longer: int = self.test.shape[1] // self.readings.shape[1] - 1
        return len(self.readings) - longer * len(np.unique(self.trials))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: accuracy of the predictions by tenth of the streams [10], mean of the devices; accuracy of the final
    model and of each device's own newest weights on each person's test [D]; updates sent and their bytes in all."""

    prequential: list[float]
    final: list[float]
    own: list[float]
    updates: int
    sent_bytes: int
    drifts: int


def people(hop: int, most: int | None = None) -> list[Person]:
    """The people of MotionSense, `most` of them, with readings of `hop` samples."""
    with np.load(MOTIONSENSE, allow_pickle=False) as data:
        windows = data["X"].astype(np.float32) * data["scale"].astype(np.float32)
        windows[..., 3:] *= 0.3
        labels, trial, subject = (data[name].astype(np.int64) for name in ("y", "trial", "subject"))
        order = np.lexsort((data["window"], trial, subject))
    found = []
    for person in np.unique(subject)[:most]:
        own = order[subject[order] == person]
        seen, test = own[trial[own] < LONG], own[trial[own] > LONG]
        pieces = windows.shape[1] // hop
        readings = windows[seen].reshape(len(seen) * pieces, hop, windows.shape[2])
        found.append(
            Person(
                readings,
                np.repeat(labels[seen], pieces),
                np.repeat(trial[seen], pieces),
                windows[test],
                labels[test],
            )
        )
    return found


class Fleet:
    """Devices of `people` that begin with the bundle's weights; `seed`: of starts and pauses. Close it after use."""

    def __init__(self, bundle: Bundle, people: list[Person], how: How, seed: int, progress: Callable[[str], None]):
        self._bundle = bundle
        self._people = people
        self._how = how
        self._progress = progress
        self._stack = ExitStack()
        memory = Path("/dev/shm")  # noqa: S108 - commits of 16 databases on one disk are not what is measured
        where = memory if memory.is_dir() else None
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
        self._devices = [
            self._stack.enter_context(
                closing(StreamingDevice(f"pi-{place}", folder / str(place), bundle, how, person.windows // how.updates))
            )
            for place, person in enumerate(people)
        ]
        generator = np.random.default_rng(seed)
        self._times = [_times(person, generator) for person in people]
        self._slowness = generator.permutation([(1.0, SLOW)[place % 2] for place in range(len(people))])
        self._next = [0] * len(people)
        self._left = [how.updates] * len(people)
        self._updates = self._bytes = 0

    def close(self) -> None:
        """Close the devices and remove their files."""
        self._stack.close()

    def asynchronous(self, rule: str) -> Outcome:
        """The server merges each update when it comes, by `rule`."""
        loop, number = MergeLoop(rule, self._bundle.shared, len(self._devices)), itertools.count()
        events: list[tuple[float, int, int, Sent | None]] = []
        for device, times in enumerate(self._times):
            heapq.heappush(events, (times[0], next(number), device, None))
            loop.give(device, 0.0)
        while events:
            if loop.flush_at_s <= events[0][0]:
                now = loop.flush_at_s
                loop.flush()
            else:
                now, _, device, sent = heapq.heappop(events)
                if sent is not None:
                    loop.merge(device, sent, now)
                    self._devices[device].merged(sent, loop.version)
                else:
                    self._observe(device)
                    if self._next[device] < len(self._times[device]):
                        following = self._times[device][self._next[device]]
                        heapq.heappush(events, (following, next(number), device, None))
            for device in loop.released():
                loop.give(device, now)  # after its last update too: the server can't know
            for device in [device for device in loop.tasks if self._left[device] and self._devices[device].is_due]:
                sent = self._train(device, *loop.begin(device))
                heapq.heappush(events, (now + TRAINING_S * self._slowness[device], next(number), device, sent))
        loop.flush()
        return self._outcome([loop.model] * len(self._devices))

    def synchronous(self) -> Outcome:
        """FedAvg (McMahan et al., 2017): each round waits for every device that has enough examples left."""
        model = self._bundle.shared.copy()
        version = 0
        while True:
            ready = [device for device in range(len(self._devices)) if self._until_due(device)]
            if not ready:
                return self._outcome([model] * len(self._devices))
            sent = [self._train(device, os.urandom(16), model, version) for device in ready]
            weights = [one.update.samples for one in sent]
            model = model + np.average([one.delta for one in sent], axis=0, weights=weights).astype(np.float32)
            version += 1
            for device, one in zip(ready, sent, strict=True):
                self._devices[device].merged(one, version)

    def alone(self) -> Outcome:
        """No server: each device goes on from what it has."""
        for device, one in enumerate(self._devices):
            version = 0
            while self._until_due(device):
                sent = self._train(device, os.urandom(16), one.newest.copy(), version)
                version += 1
                one.merged(sent, version)
        return self._outcome([one.newest for one in self._devices])

    def _until_due(self, device: int) -> bool:
        """Stream until the device has enough new examples; False, at the stream's end, when it has sent all updates."""
        if not self._left[device]:
            while self._next[device] < len(self._times[device]):
                self._observe(device)
            return False
        while not self._devices[device].is_due:
            self._observe(device)
        return True

    def _observe(self, device: int) -> None:
        at, person = self._next[device], self._people[device]
        follows = at > 0 and person.trials[at] == person.trials[at - 1]
        self._devices[device].observe(
            person.readings[at], int(person.labels[at]), self._times[device][at], follows=follows
        )
        self._next[device] = at + 1

    def _train(self, device: int, task: bytes, model: Floats, version: int) -> Sent:
        sent = self._devices[device].train(task, model, version)
        self._updates += 1
        self._left[device] -= 1
        self._bytes += sent.size_bytes
        done = sum(self._next) / sum(map(len, self._times))
        self._progress(f"{100 * done:3.0f} % of the streams, {self._updates} updates")
        return sent

    def _outcome(self, models: list[Floats]) -> Outcome:
        tenths = [[1 - float(np.mean(part)) for part in np.array_split(one.errors, 10)] for one in self._devices]
        return Outcome(
            np.mean(tenths, axis=0).tolist(),
            [self._accuracy(device, models[device]) for device in range(len(models))],
            [self._accuracy(device, one.newest) for device, one in enumerate(self._devices)],
            self._updates,
            self._bytes,
            sum(one.drifts for one in self._devices),
        )

    def _accuracy(self, device: int, weights: Floats) -> float:
        person = self._people[device]
        return self._devices[device].accuracy(weights, person.test, person.test_labels)


def _times(person: Person, generator: np.random.Generator) -> list[float]:
    """When each of a person's readings is complete, in seconds."""
    pauses = np.concatenate(([True], person.trials[1:] != person.trials[:-1]))
    pause = np.where(pauses, generator.exponential(PAUSE_S, len(pauses)), 0.0)
    times: list[float] = (
        generator.uniform(0.0, START_S) + np.cumsum(person.readings.shape[1] / HERTZ + pause)
    ).tolist()
    return times
