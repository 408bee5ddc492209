"""How ordinary clients are spoken to: what is the same for those of the legacy and of the message API."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from flwr.app import RecordDict
from flwr.common.typing import NDArrays

from pollen.errors import MessageError
from pollen.fields import MAX_NAME, MAX_NAMED
from pollen.messages import Scalar, TaskKind
from server.evaluation import Score
from server.guards.settings import MOST_SAMPLES
from server.rules.rule import Vector
from server.tasks import Evaluated, OpenTask


@dataclass(frozen=True, slots=True)
class Trained:
    """What an ordinary node answered to a train message: whole arrays in the model's order, samples and metrics."""

    arrays: NDArrays
    samples: int
    metrics: dict[str, float]


class FailedError(Exception):
    """A client says that it could not do its task; the text is its reason."""


class Dialect(Protocol):
    """How tasks are put to clients of one kind, and their answers read."""

    def task_config(self, version: int, nodes: Sequence[int], kind: TaskKind = "train") -> dict[int, dict[str, Scalar]]:
        """What the strategy says to these free nodes, by node id; it may leave some out."""

    def contents(self, tasks: Sequence[OpenTask], weights: Vector) -> list[RecordDict]:
        """The contents of the messages for `tasks`, each with `weights` [P] and its task's config."""

    def trained(self, content: RecordDict) -> Trained:
        """Read an answer to a train message. Raises FailedError, MessageError, and others for what is no answer."""

    def evaluated(self, content: RecordDict) -> Evaluated:
        """Read an answer to an evaluate message. Raises as `trained` does."""

    def evaluate(self, version: int, weights: Vector) -> Score | None:
        """Evaluate `weights` [P] on the server's own data, None where the user gave nothing to do it with."""


def scalars(config: Mapping[str, object]) -> dict[str, Scalar]:
    """What of a `config` can go into a task."""
    return {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}


def finite(metrics: Mapping[str, object]) -> dict[str, float]:
    """Those of `metrics` that are finite numbers; the first 64 with names of at most 64 characters, as for devices
    behind gateways: histories keep them, and a client may send any number."""
    numbers = (
        (name, float(value))
        for name, value in metrics.items()
        if isinstance(value, int | float) and len(name) <= MAX_NAME
    )
    return dict(islice(((name, number) for name, number in numbers if math.isfinite(number)), MAX_NAMED))


def evaluation(loss: float, samples: int, metrics: Mapping[str, object]) -> Evaluated:
    """How the model did on a client's data. Raises MessageError for too few or many samples, or no finite loss."""
    if not 1 <= samples <= MOST_SAMPLES:
        raise MessageError(f"n = {samples} samples; an evaluation needs at least 1 and at most 2^40")
    if not math.isfinite(loss):
        raise MessageError(f"a loss of {loss} is not finite", "not-finite")
    return Evaluated(float(loss), samples, finite(metrics))
