"""What a running server takes over of its settings on a SIGHUP; the rest waits for a restart, and is named."""

import logging
from dataclasses import replace
from typing import Final

from pollen.settings import differences
from server.settings import ModelSettings, Settings
from server.tuning import Tuning

LOG = logging.getLogger("pollen.server")

# Of each model, whether its tables are at the top or in [models.<name>].
LIVE: Final = (
    "task",
    "publish",
    "limits",
    "evaluation.interval_s",
    "evaluation.federated_interval_s",
    "evaluation.federated_fraction",
    "evaluation.federated_deadline_s",
    "guard.updates_per_minute",
    "guard.burst",
    "guard.norm",
    "guard.norm_factor",
    "guard.warm_up",
    "guard.cosine_least",
    "guard.cosine_step",
    "guard.most_samples",
)


def tunings(old: Settings, new: Settings) -> dict[str, Tuning]:
    """By name of its table, what each model that runs by `old` takes over from `new`. What else has changed inside of
    [models.<name>] is logged; of the top, `pollen.service.Reloads` does that."""
    before = {model.name: model.settings for model in old.served()}
    after = {model.name: model.settings for model in new.served()}
    waiting = [f"models.{name}" for name in sorted(before.keys() ^ after.keys())]
    for name in before.keys() & after.keys() if new.models else ():
        waiting += [f"models.{name}.{field}" for field in differences(before[name], after[name]) if not _is_live(field)]
    for name in before.keys() & after.keys():
        if after[name].evaluation.federated_interval_s and not before[name].evaluation.federated_interval_s:
            waiting.append(f"{f'models.{name}.' if name else ''}evaluation.federated_interval_s, which was 0")
    if waiting:
        LOG.warning("changed, but only a restart takes it over: %s", ", ".join(waiting))
    return {name: _tuning(before[name], settings) for name, settings in after.items() if name in before}


def _tuning(before: ModelSettings, after: ModelSettings) -> Tuning:
    evaluation = after.evaluation
    tuning = Tuning(
        task_config=after.task.config,
        task_ttl_s=after.task.ttl_s,
        publish_interval_s=after.publish.min_interval_s,
        update_bytes=after.limits.update_bytes,
        evaluation_interval_s=evaluation.interval_s,
        federated_interval_s=evaluation.federated_interval_s,
        federated_fraction=evaluation.federated_fraction,
        federated_deadline_s=evaluation.federated_deadline_s,
        guard=after.guard,
    )
    if before.privacy.clip_norm:  # what it promises needs the guard that it began with
        return replace(tuning, guard=before.guard)
    return replace(tuning, guard=replace(after.guard, norm_window=before.guard.norm_window))


def _is_live(field: str) -> bool:
    return any(field == live or field.startswith(f"{live}.") for live in LIVE)
