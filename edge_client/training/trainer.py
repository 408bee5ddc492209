"""Training and evaluation on the replay buffer, cut into slices so that nothing waits for them."""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.clock import Clock
from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.settings import Training
from edge_client.training import optimizers
from pollen import scoring
from pollen.bundle import Floats
from pollen.errors import MessageError, PollenError
from pollen.interpreter import TrainingGraph
from pollen.manifest import Manifest
from pollen.messages import TASK_ID_BYTES, Scalar

PROBE_BATCHES: Final = 4  # batches on which the loss before and after is taken
MAX_EPOCHS: Final = 1000
MAX_STEPS: Final = 100_000
SKIPS: Final = 10
MAX_SKIPS: Final = 1000
LEAST_SHARE: Final = 1e-6

Slots = npt.NDArray[np.int64]


class TrainingDivergedError(PollenError):
    """The weights are no numbers any more: the learning rate is too high for this data."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: passes over the buffer, the most steps, FedProx's mu, the learning rate (None: the model's), which
    is multiplied by `rate_factor`.

    And what to send: lazy upload keeps an update of a norm below `skip_below_norm` back, at most `skips` times running;
    `against`: None for a plain delta, else the task to whose contribution a residual is asked for (b"": the bundle);
    `topk_share`: of the encoding topk (0: the device's own).
    """

    epochs: int
    max_steps: int
    proximal_mu: float
    learning_rate: float | None
    skip_below_norm: float = 0.0
    skips: int = SKIPS
    against: bytes | None = None
    topk_share: float = 0.0
    rate_factor: float = 1.0


def plan(settings: Training, config: Mapping[str, Scalar]) -> Plan:
    """The settings, overridden by a task's config. Raises MessageError for a value that can't be used."""
    rate = number(config, "learning_rate", 0.0, 1e-12, 1e3)
    return Plan(
        epochs=int(number(config, "epochs", settings.epochs, 1, MAX_EPOCHS)),
        max_steps=int(number(config, "max_steps", settings.max_steps, 1, MAX_STEPS)),
        proximal_mu=number(config, "proximal_mu", settings.proximal_mu, 0.0, 1e6),
        learning_rate=rate or None,
        skip_below_norm=number(config, "skip_below_norm", 0.0, 0.0, 1e30),
        skips=int(number(config, "skips", SKIPS, 0, MAX_SKIPS)),
        against=_against(config),
        topk_share=number(config, "topk_share", 0.0, LEAST_SHARE, 1.0),
    )


def _against(config: Mapping[str, Scalar]) -> bytes | None:
    if config.get("upload", "delta") == "delta":
        return None
    against = str(config.get("against", ""))
    if config["upload"] != "residual" or not re.fullmatch(f"([0-9a-f]{{{2 * TASK_ID_BYTES}}})?", against):
        raise MessageError("task: config upload must be delta or residual, against a task's id in hex or empty")
    return bytes.fromhex(against)


def number(config: Mapping[str, Scalar], name: str, default: float, least: float, most: float) -> float:
    """A number from a task's config, or `default`. Raises MessageError when it is outside [least, most]."""
    if name not in config:
        return default
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise MessageError(f"task: config {name} = {value!r} must be a number from {least:g} to {most:g}")
    return float(value)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a run gave: weights [P], state [S], the serial numbers of the distinct examples it used, its steps, the
    mean loss of the base and of the new weights on some of these examples, and the seconds it computed."""

    weights: Floats
    state: Floats
    serials: Slots
    steps: int
    loss_before: float
    loss_after: float
    seconds: float


class TrainingRun:
    """One training, from the weights [P] and state [S] in `start`; FedProx and loss_before refer to those in `base`.

    `steps_done` training steps lie behind these weights, for a learning rate that follows a schedule.
    Examples are drawn from the buffer without replacement, pass by pass, as they stand when their batch is due, so
    a sample that arrives meanwhile is learned from at once.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        buffer: ReplayBuffer,
        *,
        start: tuple[Floats, Floats],
        base: tuple[Floats, Floats],
        steps_done: int,
        plan: Plan,
        chance: random.Random,
        clock: Clock,
    ) -> None:
        manifest = graph.manifest
        optimizer = manifest.optimizer
        if plan.learning_rate is not None:
            optimizer = replace(optimizer, learning_rate=plan.learning_rate)
        self._graph = graph
        self._buffer = buffer
        self._base = base
        self._weights, self._state = start[0].copy(), start[1]
        self._plan = plan
        self._optimizer = optimizers.make(optimizer, manifest, steps_done=steps_done, rate_factor=plan.rate_factor)
        # A personal layer has nothing global to be pulled to.
        self._pulled = tuple(_shared_weights(manifest)) if plan.proximal_mu else ()
        self._chance = chance
        # numpy.random costs 7 MB, so only models with dropout load it.
        self._noise = np.random.default_rng(chance.getrandbits(128)) if manifest.noise else None
        self._clock = clock
        self._batch = manifest.batch
        # Padding would enter BatchNormalization's statistics, so such models get whole batches only.
        self._smallest = manifest.batch if manifest.state_size else 1
        self._order = _permutation(len(buffer), chance)
        self._at = 0
        self._epoch = 0
        self._steps = 0
        self._seconds = 0.0
        self._used: list[Slots] = []
        self._probe = buffer.take(self._order[: PROBE_BATCHES * manifest.batch])
        self._loss_before = float("nan")
        self.result: Trained | None = None

    def advance(self, seconds: float) -> bool:
        """Compute for about `seconds`; whether the run is finished. Raises TrainingDivergedError."""
        started = self._clock.monotonic()
        if self._steps == 0 and not self._used:
            self._loss_before = self.loss(*self._base)
        with np.errstate(over="ignore", invalid="ignore"):  # weights that blow up are found at the end
            # At least one step: the loss alone may take longer than a slice.
            finished = not self._step()
            while not finished and self._clock.monotonic() - started < seconds:
                finished = not self._step()
        self._seconds += self._clock.monotonic() - started
        if finished:
            self._finish()
        return finished

    def _step(self) -> bool:
        """One batch; False when there is none left."""
        if self._steps >= self._plan.max_steps:
            return False
        slots = self._order[self._at : self._at + self._batch]
        if len(slots) < self._smallest:
            self._epoch += 1
            if self._epoch >= self._plan.epochs or self._at == 0:
                return False
            self._order = _permutation(len(self._buffer), self._chance)
            self._at = 0
            return True
        x, y = self._buffer.take(slots)
        step = self._graph.gradient(self._weights, x, y, self._state, self._noise)
        gradient = step.gradient
        if self._plan.proximal_mu:
            for run in self._pulled:
                optimizers.add_proximal(gradient[run], self._weights[run], self._base[0][run], self._plan.proximal_mu)
        self._optimizer.step(self._weights, gradient)
        self._state = step.state
        self._used.append(self._buffer.serials(slots))
        self._at += len(slots)
        self._steps += 1
        return True

    def _finish(self) -> None:
        loss_after = self.loss(self._weights, self._state)
        if not all(np.isfinite(values).all() for values in (self._weights, self._state, loss_after)):
            raise TrainingDivergedError("training diverged: the weights are not finite; lower the learning rate")
        serials = np.unique(np.concatenate(self._used)) if self._used else np.zeros(0, np.int64)
        self.result = Trained(
            self._weights, self._state, serials, self._steps, self._loss_before, loss_after, self._seconds
        )

    def loss(self, weights: Floats, state: Floats) -> float:
        """The mean loss of weights [P] with state [S] on the examples that loss_before and loss_after are taken on."""
        x, y = self._probe
        return scoring.mean_loss(self._graph.manifest.loss, self._graph.predict(weights, x, state), y)


def _shared_weights(manifest: Manifest) -> Iterator[slice]:
    """Where the weights that are no personal layer's stand among all [P]; neighbours are one slice."""
    start = end = 0
    for tensor in manifest.weights:
        if tensor.layer in manifest.personal:
            if end > start:
                yield slice(start, end)
            start = end = end + tensor.size
        else:
            end += tensor.size
    if end > start:
        yield slice(start, end)


def _permutation(count: int, chance: random.Random) -> Slots:
    """0 … count - 1 in random order: the order of as many random 64-bit numbers."""
    return np.argsort(np.frombuffer(chance.randbytes(8 * count), np.uint64))


class EvaluationRun:
    """Loss and error of `weights` [P] with `state` [S] on the whole buffer."""

    def __init__(
        self, graph: TrainingGraph, buffer: ReplayBuffer, weights: Floats, state: Floats, clock: Clock
    ) -> None:
        self._graph = graph
        self._buffer = buffer
        self._weights = weights
        self._state = state
        self._clock = clock
        self._examples = len(buffer)
        self._done = 0
        self._loss = 0.0
        self._error = 0.0

    @property
    def samples(self) -> int:
        """Examples evaluated so far."""
        return self._done

    @property
    def metrics(self) -> dict[str, float]:
        """The mean loss and error of the examples evaluated."""
        return {"loss": self._loss / max(self._done, 1), "error": self._error / max(self._done, 1)}

    def advance(self, seconds: float) -> bool:
        """Compute for about `seconds`; whether the whole buffer was evaluated."""
        started = self._clock.monotonic()
        loss, batch = self._graph.manifest.loss, self._graph.manifest.batch
        while self._done < self._examples:
            x, y = self._buffer.take(np.arange(self._done, min(self._done + batch, self._examples)))
            output = self._graph.predict(self._weights, x, self._state)
            self._loss += scoring.mean_loss(loss, output, y) * len(y)
            self._error += float(scoring.errors(loss, output, y).sum())
            self._done += len(y)
            if self._clock.monotonic() - started >= seconds:
                break
        return self._done >= self._examples
