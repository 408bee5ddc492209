"""What the agent says of itself: vitals for the server, the status for those beside it."""

import math
from dataclasses import dataclass
from typing import Any

from edge_client import vitals
from edge_client.clock import Clock
from edge_client.learning.learner import Learner
from edge_client.learning.stream_store import StreamStore
from edge_client.model.device_model import DeviceModel
from edge_client.network.budget import Budget
from edge_client.network.delivery import Delivery
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sampler
from edge_client.settings import EdgeSettings
from edge_client.training.worker import Worker
from pollen.messages import Receipt


@dataclass(frozen=True, slots=True)
class Parts:
    """The agent's parts, to be looked at only."""

    model: DeviceModel
    stream: StreamStore
    outbox: Outbox
    session: MqttSession
    budget: Budget
    delivery: Delivery
    worker: Worker
    sampler: Sampler


class Report:
    """Reads the parts of a running agent."""

    def __init__(self, settings: EdgeSettings, parts: Parts, clock: Clock) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = clock
        self._started = clock.monotonic()
        self._last_merge: tuple[Receipt, float] | None = None

    def receipted(self, receipt: Receipt) -> None:
        """Remember the last merge."""
        if receipt.outcome == "merged":
            self._last_merge = receipt, self._clock.monotonic()

    def vitals(self) -> dict[str, float]:
        """All vitals of this device by name; units are in the names. Not all are finite."""
        parts = self._parts
        model, session, delivery = parts.model, parts.session, parts.delivery
        values = vitals.machine(self._settings.state_dir) | parts.sampler.vitals() | {
            "samples_seen": model.samples_seen,
            "updates_made": parts.worker.updates_made,
            "receipts_merged": delivery.merged,
            "receipts_rejected": delivery.rejected,
            "outbox_rows": len(parts.outbox.rows),
            "outbox_oversize": delivery.oversize,
            "outbox_lost": float(parts.outbox.lost),
            "stored_samples": parts.stream.samples,
            "stored_damaged": parts.stream.damaged,
            "store_dropped": parts.stream.dropped,
            "update_bytes": delivery.update_bytes,
            "sent_bytes": session.sent_bytes,
            "received_bytes": session.received_bytes,
            "train_seconds_total": parts.worker.train_seconds + parts.worker.own.seconds,
            "own_trainings": parts.worker.own.trainings,
            "training_held": parts.worker.hold,
            "reconnects": session.reconnects,
            "refused_models": model.trust.refused,
            "bundle_refused": len(model.record.refused),
        }  # fmt: skip
        if parts.budget.limit:
            values["budget_left_bytes"] = parts.budget.left
        if self._settings.upload.metered_interfaces:
            values["metered"] = bool(delivery.metered)
        if model.snapshot is not None:
            values["base_version"] = model.snapshot.number
        if self._settings.inference.graph != "off":
            values |= {
                "inference_version": model.published.version,
                "inference_predictions": model.published.predictions,
            }
        return values if model.learner is None else values | _learned(model.learner)

    def status(self) -> dict[str, Any]:
        """What `pollen-edge status` shows; plain values for JSON, None where there is nothing to say."""
        parts, now = self._parts, self._clock.monotonic()
        model, learner, settings = parts.model, parts.model.learner, self._settings
        faults = parts.sampler.counters
        merge = None
        if self._last_merge is not None:
            receipt, at = self._last_merge
            merge = {"ago_s": now - at, "version": receipt.version} | {
                "staleness": receipt.staleness, "weight": receipt.weight
            }  # fmt: skip
        return {
            "device": settings.device,
            "fleet": settings.fleet,
            "running_s": now - self._started,
            "clock_synchronised": self._clock.synchronised(),
            "sensor": {
                "kind": settings.sensor.kind,
                "channels": [[channel.name, channel.unit] for channel in parts.sampler.channels],
                "samples": model.samples_seen,
                "faults": faults.skipped + faults.held + faults.duplicates + faults.failures,
                "silent_s": _finite(parts.sampler.silent_s),
            },
            "model": {
                "name": settings.model,
                "digest": model.digest.hex(),
                "version": None if model.snapshot is None else model.snapshot.number,
                "runtime": "" if model.graph is None else model.graph.runtime,
            },
            "learner": {
                "target": settings.learner.target,
                "horizon": settings.learner.horizon,
                "examples": 0 if learner is None else len(learner.buffer),
                "drifts": 0 if learner is None else learner.drifts,
                "drift_ago_s": None if learner is None or learner.drifted_at is None else now - learner.drifted_at,
                "anomaly": learner is not None and learner.evaluation.is_anomaly,
            },
            "error": _errors(learner),
            "training": {
                "waiting_for": parts.worker.waiting_for,
                "updates": parts.worker.updates_made,
                "own": parts.worker.own.trainings,
                "seconds_total": parts.worker.train_seconds + parts.worker.own.seconds,
            },
            "last_merge": merge,
            "connection": {
                "broker": f"{settings.broker.host}:{settings.broker.port}",
                "connected": parts.session.connected,
                "problem": "" if parts.session.connected else parts.session.problem,
                "waiting": len(parts.outbox.rows),
                "held": parts.delivery.held,
                "sent_bytes": parts.session.sent_bytes,
                "received_bytes": parts.session.received_bytes,
            },
            "problems": self._problems(),
        }

    def _problems(self) -> list[str]:
        """What someone should look at."""
        parts = self._parts
        found = [
            parts.model.problem,
            self._sensor_problem(),
            f"samples are not kept: {parts.stream.problem}" if parts.stream.problem else "",
            "some updates were in a damaged outbox that was moved aside" if parts.outbox.lost else "",
            "an update is larger than may be sent; see the log" if parts.delivery.oversize else "",
            *(f"bundle {digest[:8]} is refused: {why}" for digest, why in parts.model.record.refused.items()),
        ]
        return [problem for problem in found if problem]

    def _sensor_problem(self) -> str:
        sampler = self._parts.sampler
        if not sampler.channels:
            return "the sensor is not open; see the log"
        if sampler.ended:
            return "the sensor's recording has ended"
        silent_s = sampler.silent_s
        return f"no reading for {silent_s:.0f} s; check the sensor's cable" if sampler.is_silent else ""


def _learned(learner: Learner) -> dict[str, float]:
    prequential = learner.prequential
    return {
        "buffer_samples": len(learner.buffer),
        "scored": prequential.count,
        "prequential_error": prequential.error,
        "baseline_error": prequential.baseline,
        "error_first": prequential.error_first,
        "baseline_first": prequential.baseline_first,
        "drifts": learner.drifts,
        "anomalies": learner.evaluation.anomalies,
        "missed_labels": learner.missed_labels,
        "refused_labels": learner.refused_labels,
        "unknown_labels": learner.unknown_labels,
        "unknown_inputs": learner.unknown_inputs,
    }


def _errors(learner: Learner | None) -> dict[str, list[float | None]]:
    """[error, baseline's error] now, today and yesterday."""
    if learner is None:
        return {when: [None, None] for when in ("now", "today", "yesterday")}
    prequential = learner.prequential
    spans = {
        "now": (prequential.error, prequential.baseline),
        "today": prequential.hours.today,
        "yesterday": prequential.hours.yesterday,
    }
    return {when: [_finite(value) for value in errors] for when, errors in spans.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
