"""The open train task: what was trained for it so far, and the update that says so."""

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edge_client.clock import Clock
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import Version
from edge_client.network.error_feedback import compress
from edge_client.network.outbox import Outbox, Reply, Row
from edge_client.settings import EdgeSettings, Training, Upload
from edge_client.training import trainer
from edge_client.training.trainer import Plan, Trained, TrainingRun
from edge_client.vitals import rss_bytes
from pollen import encoding, messages
from pollen.bundle import Floats
from pollen.errors import MessageError, StoreError
from pollen.messages import Scalar, Task, Update

LOG = logging.getLogger(__name__)

LARGEST_WAIT: Final = 2**31  # examples that a task may make the device wait for


@dataclass(slots=True)
class OpenTrain:
    """A train task and its work: `local` [F] came from `base` in `steps` steps with `samples` distinct examples.

    Offline, or while the update is kept back, further trainings go on from `local`, and the one update grows.
    `newest_serial` is the newest example counted, so that each counts once; `seconds` were spent computing.
    """

    task: Task
    base: Version | None = None
    local: Floats | None = None
    samples: int = 0
    steps: int = 0
    newest_serial: int = -1
    seconds: float = 0.0

    def add(self, trained: Trained, shared: Floats) -> None:
        """Count one more training, which made `shared` [F] of the shared values."""
        self.samples += int(np.count_nonzero(trained.serials > self.newest_serial))
        self.newest_serial = max(self.newest_serial, int(trained.serials.max(initial=-1)))
        self.steps += trained.steps
        self.seconds += trained.seconds
        self.local = shared

    def is_final(self, row: Row | None) -> bool:
        """Whether the reply `row` to the task, if there is one, can't become a better one."""
        return row is not None and (row.handed or row.leaf == "result" or self.local is None)


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
    local = outbox.unsent_contribution(task.task, len(base.weights))
    if local is None:
        update = messages.decode_update(outbox.payload(task.task), limit_bytes)
        local = np.empty_like(base.weights)
        encoding.decode_into(local, update.delta, graph.manifest.shared)
        local += base.weights
        # What was sent differs from what was trained by the residuals on both sides of it.
        left = outbox.unsent_residual(task.task, len(local))
        before = outbox.residual(model.digest, len(local))
        local += (0.0 if left is None else left) - (0.0 if before is None else before)
    model.local = local
    return OpenTrain(task, base, local, row.samples, row.steps)


def lacks(config: Mapping[str, Scalar], model: DeviceModel, settings: Training, trained_total: int) -> str:
    """What is missing until there are enough examples newer than the first `trained_total`; "": nothing.

    Raises MessageError when a task's `config` asks for a number of them that can't be.
    """
    learner, graph = model.learner, model.graph
    if learner is None or graph is None:
        return "a model that fits the sensor"
    smallest = graph.manifest.batch if graph.manifest.state_size else 1
    needed = int(trainer.number(config, "min_samples", settings.new_samples, 1, LARGEST_WAIT))
    total = learner.buffer.total
    trained_total = max(trained_total, learner.trained_total)
    new = total - trained_total if total >= trained_total else total  # else they are those of a new buffer
    if new < needed:
        return f"{new} of {needed} new examples"
    return f"{len(learner.buffer)} of the {smallest} samples of a batch" if len(learner.buffer) < smallest else ""


def start(
    train: OpenTrain,
    model: DeviceModel,
    settings: Training,
    *,
    chance: random.Random,
    clock: Clock,
    rate_factor: float = 1.0,
) -> TrainingRun:
    """The next training for the task: from its work so far, or else from the newest snapshot; `rate_factor` times the
    learning rate.

    Raises MessageError when the task asks for what can't be.
    """
    graph, learner, snapshot = model.graph, model.learner, model.snapshot
    if graph is None or learner is None or snapshot is None:
        raise MessageError("the model is gone")
    if train.local is None or train.base is None:
        train.base, train.local = snapshot, None
    base = model.join(train.base.weights)
    return TrainingRun(
        graph,
        learner.buffer,
        start=base if train.local is None else model.join(train.local),
        base=base,
        steps_done=model.personal.steps,
        plan=replace(trainer.plan(settings, train.task.config), rate_factor=rate_factor),
        chance=chance,
        clock=clock,
    )


def finish(
    train: OpenTrain,
    trained: Trained,
    model: DeviceModel,
    outbox: Outbox,
    *,
    settings: EdgeSettings,
    chance: random.Random,
) -> Row | None:
    """Take up a finished training, and put its update into the outbox; None where that can't keep it."""
    shared = model.take_trained(trained.weights, trained.state, trained.steps)
    train.add(trained, shared)
    try:
        plan = trainer.plan(settings.training, train.task.config)
        row = store_update(train, trained, model, outbox, plan=plan, settings=settings.upload, chance=chance)
    except (StoreError, MessageError) as error:
        LOG.error("the update can't be kept: %s", error)
        return None
    if row.skipped:
        LOG.info("update %d is small and kept back, %d of at most %d times", row.seq, row.skipped, plan.skips)
    else:
        LOG.info(
            "update %d for version %d: %d samples, %d steps, loss %.4g -> %.4g, %d bytes",
            row.seq, row.base, row.samples, row.steps, trained.loss_before, trained.loss_after, row.size_bytes,
        )  # fmt: skip
    return row


def diverged(train: OpenTrain, run: TrainingRun, model: DeviceModel) -> None:
    """A training gave no numbers: personal values that do worse than the bundle's start again from these.

    The server repairs shared values with the next snapshot, but of personal ones it knows nothing.
    """
    trained = model.personal
    if train.base is None or not len(trained.values):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        before = run.loss(*model.join(train.base.weights))
        model.reset_personal()
        if before <= run.loss(*model.join(train.base.weights)):
            model.personal = trained
        else:
            LOG.warning("the personal layers do worse than the bundle's and start again from these")


def store_update(
    train: OpenTrain,
    trained: Trained,
    model: DeviceModel,
    outbox: Outbox,
    *,
    plan: Plan,
    settings: Upload,
    chance: random.Random,
) -> Row:
    """Put the update of a finished training into the outbox, in the task's encoding or else that of the settings.

    Where `plan` says so it is a residual, and is kept back while it is small. Raises StoreError when it can't be kept,
    MessageError when it can't be encoded.
    """
    graph, base, shared = model.graph, train.base, train.local
    if graph is None or base is None or shared is None:
        raise StoreError("the model is gone")
    skipped = _skipped(outbox.row(train.task.task), shared - base.weights, plan)
    chosen = train.task.config.get("encoding", settings.encoding)
    against, origin, missed = None, base.weights, outbox.residual(model.digest, graph.manifest.shared_size)
    if plan.against is not None:
        # What this update misses lies between the contribution and the next model, so the next residual carries it.
        (against, origin), missed = _contributed(plan.against, model, outbox), None
    wire, left = compress(
        shared - origin,
        missed,
        graph.manifest,
        chosen if chosen in encoding.ENCODINGS else settings.encoding,
        chance,
        share=plan.topk_share or settings.topk_share,
    )
    contribution = None
    if against is not None:
        contribution, left = shared if left is None else shared - left, None
    metrics = _metrics(train, trained, model)

    def build(seq: int) -> bytes:
        return messages.encode(
            Update(train.task.task, seq, base.number, train.samples, train.steps, wire, metrics, against)
        )

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
            contribution=contribution,
            skipped=skipped,
            personal=model.personal,
        )
    )


def _skipped(row: Row | None, delta: Floats, plan: Plan) -> int:
    """How often running the update of `delta` [F] is kept back with this time, 0 to send it; `row`: the one before it.

    One that was to be sent already is never kept back.
    """
    before = 0 if row is None else row.skipped
    if (row is not None and not before) or before >= plan.skips:
        return 0
    return before + 1 if float(np.sqrt(np.dot(delta, delta))) < plan.skip_below_norm else 0


def _contributed(asked: bytes, model: DeviceModel, outbox: Outbox) -> tuple[bytes, Floats]:
    """What a residual is measured against: the task whose contribution it is, and that contribution [F].

    b"" and the bundle's values unless the device has the contribution to the task `asked`.
    """
    size = len(model.first)
    task, vector = outbox.contribution(model.digest, size) or (b"", model.first)
    if task != asked and (waiting := outbox.unsent_contribution(asked, size)) is not None:
        return asked, waiting  # merged by what the server says, though its receipt is still under way
    return (task, vector) if task == asked else (b"", model.first)


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
        metrics["drifts"] = float(model.learner.drifts)
        if model.learner.drifts:
            metrics["samples_since_drift"] = float(model.learner.evaluation.since_drift)
    return messages.finite_metrics(metrics)
