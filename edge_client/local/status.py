"""What `pollen-edge status` shows: the agent's answer as JSON, and the same for a person to read."""

from collections.abc import Mapping
from typing import Any, Final

HOUR_S: Final = 3600.0
_CLOCK: Final = {
    True: "synchronised",
    False: "not synchronised: recorded times may be wrong",
    None: "this system can't say whether it is right",
}


def render(status: Mapping[str, Any]) -> str:
    """The status as lines for a person."""
    rows = [
        ("device", f"{status['device']} of fleet {status['fleet']}, running for {span(status['running_s'])}"),
        ("sensor", _sensor(status["sensor"])),
        ("model", _model(status["model"])),
        ("learns", _task(status["learner"])),
        ("error", _errors(status["error"])),
        ("training", _training(status["training"])),
        ("last merge", _merge(status["last_merge"])),
        ("server", _connection(status["connection"])),
        ("clock", _CLOCK[status["clock_synchronised"]]),
    ]
    rows += [("problem", problem) for problem in status["problems"]]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)


def _sensor(sensor: Mapping[str, Any]) -> str:
    if not sensor["channels"]:
        return f"{sensor['kind']}: not open"
    channels = ", ".join(f"{name} [{unit}]" if unit else name for name, unit in sensor["channels"])
    return f"{sensor['kind']}: {channels}; {sensor['samples']} samples, {sensor['faults']} faulty"


def _model(model: Mapping[str, Any]) -> str:
    if not model["digest"]:
        return f"{model['name']}: none here yet"
    version = "the bundle's own weights" if model["version"] is None else f"version {model['version']}"
    return f"{model['name']} ({model['digest'][:8]}), {version}, on {model['runtime']}"


def _task(learner: Mapping[str, Any]) -> str:
    task = {
        "next": f"to forecast {_count(learner['horizon'], 'reading')} ahead",
        "label": "to predict the label",
        "self": "to rebuild each window",
    }[learner["target"]]
    drifts = learner["drifts"]
    ago = learner["drift_ago_s"]
    last = "before the start" if ago is None else f"{span(ago)} ago"
    drift = f"; {_count(drifts, 'drift')}, the last {last}" if drifts else ""
    return f"{task} from {learner['examples']} examples in memory{drift}"


def _errors(errors: Mapping[str, Any]) -> str:
    shown = []
    for when in ("now", "today", "yesterday"):
        model, baseline = errors[when]
        if model is not None and baseline is not None:
            ratio = f", {model / baseline:.2f} of it" if baseline else ""
            shown.append(f"{when} {model:.4g} (baseline {baseline:.4g}{ratio})")
    return "; ".join(shown) or "no window has been scored yet"


def _training(training: Mapping[str, Any]) -> str:
    waits = training["waiting_for"]
    own = f", {_count(training['own'], 'training')} for itself while offline" if training["own"] else ""
    return f"{'waits: ' + waits if waits else 'now'}; {_count(training['updates'], 'update')} made so far{own}"


def _merge(merge: Mapping[str, Any] | None) -> str:
    if merge is None:
        return "none since the start"
    return (
        f"{span(merge['ago_s'])} ago: version {merge['version']}, staleness {merge['staleness']}, "
        f"weight {merge['weight']:.3g}"
    )


def _connection(connection: Mapping[str, Any]) -> str:
    state = "connected" if connection["connected"] else "not connected"
    waiting, held = connection["waiting"], connection["held"]
    waits = f"{_count(waiting, 'update') if waiting else 'no update'} waiting{f': {held}' if held else ''}"
    why = f" ({connection['problem']})" if connection["problem"] else ""
    return f"{state} to {connection['broker']}{why}; {waits}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR_S:.0f} h" if seconds < 72 * HOUR_S else f"{seconds / (24 * HOUR_S):.0f} days"
