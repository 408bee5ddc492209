"""What a history file says of earlier runs, for the curves: its last part only, so that a start stays quick."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from server.history import Evaluation
from server.history_file import rotated
from server.web.model_view import ModelView

LOG = logging.getLogger("pollen.server.web")

TAIL_BYTES: Final = 4 * 2**20  # some 10,000 merges; read in a tenth of a second


def read(path: Path, view: ModelView) -> None:
    """Put the evaluations and the updates' losses in the last part of the file `path` into the curves of `view`. A file
    that can't be read costs the curves only."""
    try:
        for entry in _entries(path):
            _show(entry, view)
    except OSError as error:
        LOG.warning("%s: can't be read (%s); the curves begin empty", path, error.strerror)


def _show(entry: dict[str, Any], view: ModelView) -> None:
    try:
        at = float(entry["time"])
        match entry["event"]:
            case "merge" if entry["loss_before"] is not None:
                view.learned(at, float(entry["loss_before"]))
            case "evaluation" | "federated_evaluation" as event if entry["loss"] is not None:
                evaluation = Evaluation(
                    0.0,
                    int(entry["version"]),
                    float(entry["loss"]),
                    dict(entry["metrics"]),
                    int(entry.get("devices", 0)),
                    int(entry.get("samples", 0)),
                )
                view.scored(at, evaluation, federated=event == "federated_evaluation")
    except (KeyError, TypeError, ValueError, OverflowError):
        return  # of another release, or edited by hand


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    lines = _tail(path, TAIL_BYTES)
    if len(lines) < TAIL_BYTES and rotated(path).exists():
        lines = _tail(rotated(path), TAIL_BYTES - len(lines)) + lines
    for text in lines.splitlines():
        try:
            entry = json.loads(text)
        except ValueError:  # the first one may be cut
            continue
        if isinstance(entry, dict):
            yield entry


def _tail(path: Path, size: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read(size)
