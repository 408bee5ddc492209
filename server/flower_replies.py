"""A device's reply as Flower wants it: whole arrays instead of a delta, and always the same metrics."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.typing import Scalar as FlowerScalar

from pollen.bundle import Tensor
from pollen.encoding import decode_into, named
from pollen.errors import MessageError
from pollen.messages import Result, TaskKind
from server import flower_private
from server.delivery import Reply
from server.guard import MAX_DELTA
from server.guards.settings import MOST_SAMPLES
from server.model import GlobalModel
from server.rules.rule import Vector
from server.tasks import Evaluated

# Flower's strategies stop when two replies differ in their metrics' names: these, and no others, go to them.
_METRICS: Final[dict[TaskKind, dict[str, str]]] = {
    "train": {"train_loss": "loss_after"},
    "evaluate": {"eval_loss": "loss", "eval_error": "error"},
}


def content(reply: Reply, kind: TaskKind, asked: RecordDict, model: GlobalModel) -> RecordDict:
    """What Flower gets for a device's `reply` to a message of `kind` with the content `asked`.

    Raises MessageError when it is no answer to that.
    """
    if reply.error:
        raise MessageError(reply.error)
    answer = reply.update or reply.result
    if answer is None or (kind == "train") != (reply.update is not None):
        raise MessageError(f"{'an update' if reply.update else 'a result'} answers no {kind} task")
    if not (kind == "query" or answer.samples >= 1) or answer.samples > MOST_SAMPLES:
        raise MessageError(f"n = {answer.samples} samples; at least 1 and at most 2^40 are needed")
    metrics = _chosen(answer.metrics, kind)
    legacy = flower_private.is_legacy(asked)
    if reply.update is None:
        if legacy:
            return flower_private.evaluate_answer(metrics["eval_loss"], answer.samples, {**metrics})
        return RecordDict({"metrics": MetricRecord({**metrics, "num-examples": answer.samples})})
    trained = _trained(model, reply.update.base, reply.update.delta)
    if legacy:
        flower_metrics: dict[str, FlowerScalar] = {**metrics}
        weights = list(named(trained, model.tensors).values())
        return flower_private.fit_answer(weights, answer.samples, flower_metrics)
    name, arrays_asked = next(iter(asked.array_records.items()))
    arrays = record(trained, model.tensors, list(arrays_asked))
    return RecordDict({name: arrays, "metrics": MetricRecord({**metrics, "num-examples": answer.samples})})


def evaluated(result: Result) -> Evaluated:
    """A device's `result` of an evaluate task, its metrics under Flower's names. Raises MessageError."""
    if not 1 <= result.samples <= MOST_SAMPLES:
        raise MessageError(f"n = {result.samples} samples; at least 1 and at most 2^40 are needed")
    metrics = _chosen(result.metrics, "evaluate")
    return Evaluated(metrics["eval_loss"], result.samples, {**metrics})


def _trained(model: GlobalModel, version: int, delta: object) -> Vector:
    """The weights [P] after adding a device's delta to the base it names."""
    base = model.snapshot(version)
    if base is None:
        raise MessageError(f"base version {version} was never issued or is no longer kept")
    trained = np.empty_like(base)
    decode_into(trained, delta, model.tensors)
    largest = float(np.max(np.abs(trained), initial=0.0))
    if not largest <= MAX_DELTA:
        raise MessageError(f"the delta's largest number is {largest:.3g}, above {MAX_DELTA:.0e}")
    trained += base
    if not np.isfinite(trained).all():
        raise MessageError("base and delta together hold a number that is not finite")
    return trained


def _chosen(metrics: Mapping[str, float], kind: TaskKind) -> dict[str, float]:
    """The metrics that Flower gets, under its names; MessageError when the device sent no such number."""
    if kind not in _METRICS:
        return dict(metrics)
    chosen = {}
    for name, sent in _METRICS[kind].items():
        if not math.isfinite(metrics.get(sent, math.nan)):
            raise MessageError(f"metrics lack {sent!r}, which the reply to {kind} tasks needs")
        chosen[name] = float(metrics[sent])
    return chosen


def record(weights: Vector, tensors: Iterable[Tensor], names: list[str] | None = None) -> ArrayRecord:
    """The flat `weights` [P] as Flower's arrays, under `names` or else the tensors' own."""
    views = named(weights, list(tensors))
    return ArrayRecord({name: Array(view) for name, view in zip(names or views, views.values(), strict=True)})
