"""The open train task: what was trained for it so far, and the update that says so."""

import random
from dataclasses import dataclass

import numpy as np

from edge_client.device_model import DeviceModel
from edge_client.error_feedback import compress
from edge_client.models import Version
from edge_client.outbox import Outbox, Reply, Row
from edge_client.trainer import Trained
from edge_client.vitals import rss_bytes
from pollen import encoding, messages
from pollen.bundle import Floats
from pollen.errors import StoreError
from pollen.messages import Task, Update


@dataclass(slots=True)
class OpenTrain:
    """A train task and its work: `local` [P] came from `base` in `steps` steps with `samples` distinct examples.

    Offline, further trainings go on from `local`, and the one update grows. `newest_serial` is the newest example
    counted, so that each counts once; `seconds` were spent computing.
    """

    task: Task
    base: Version | None = None
    local: Floats | None = None
    samples: int = 0
    steps: int = 0
    newest_serial: int = -1
    seconds: float = 0.0

    def add(self, trained: Trained) -> None:
        """Count one more training."""
        self.samples += int(np.count_nonzero(trained.serials > self.newest_serial))
        self.newest_serial = max(self.newest_serial, int(trained.serials.max(initial=-1)))
        self.steps += trained.steps
        self.seconds += trained.seconds
        self.local = trained.weights


def resume(task: Task, model: DeviceModel, outbox: Outbox, limit_bytes: int) -> OpenTrain:
    """The task, with what an unsent update on disk already has for it, where its base is still known.

    Raises MessageError or StoreError when that update can't be read.
    """
    row = outbox.row(task.task)
    base, graph = model.snapshot, model.graph
    if row is None or row.handed or row.leaf != "update":
        return OpenTrain(task)
    if graph is None or model.digest != task.bundle or base is None or base.number != row.base:
        return OpenTrain(task)
    update = messages.decode_update(outbox.payload(task.task), limit_bytes)
    local = np.empty_like(base.weights)
    encoding.decode_into(local, update.delta, graph.manifest.weights)
    local += base.weights
    # What was sent differs from what was trained by the residuals on both sides of it.
    left = outbox.unsent_residual(task.task, len(local))
    before = outbox.residual(model.digest, len(local))
    local += (0.0 if left is None else left) - (0.0 if before is None else before)
    model.local = local
    return OpenTrain(task, base, local, row.samples, row.steps)


def store_update(
    train: OpenTrain,
    trained: Trained,
    model: DeviceModel,
    outbox: Outbox,
    *,
    default: encoding.Encoding,
    chance: random.Random,
) -> Row:
    """Put the update of a finished training into the outbox, in the task's encoding or else `default`.

    Raises StoreError when it can't be kept, MessageError when it can't be encoded.
    """
    graph, base = model.graph, train.base
    if graph is None or base is None:
        raise StoreError("the model is gone")
    chosen = train.task.config.get("encoding", default)
    wire, left = compress(
        trained.weights - base.weights,
        outbox.residual(model.digest, graph.manifest.parameters),
        graph.manifest,
        chosen if chosen in encoding.ENCODINGS else default,
        chance,
    )
    metrics = _metrics(train, trained, model)

    def build(seq: int) -> bytes:
        return messages.encode(Update(train.task.task, seq, base.number, train.samples, train.steps, wire, metrics))

    return outbox.put(
        Reply(
            train.task.task,
            "update",
            build,
            base=base.number,
            samples=train.samples,
            steps=train.steps,
            bundle=model.digest,
            residual=left,
        )
    )


def _metrics(train: OpenTrain, trained: Trained, model: DeviceModel) -> dict[str, float]:
    metrics = {
        "loss_before": trained.loss_before,
        "loss_after": trained.loss_after,
        "train_seconds": train.seconds,
        "rss_bytes": float(rss_bytes()),
    }
    if model.learner is not None:
        metrics["prequential_error"] = model.learner.prequential.error
        metrics["baseline_error"] = model.learner.prequential.baseline
    return messages.finite_metrics(metrics)
