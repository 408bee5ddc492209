"""Was any update lost? Compares what the devices hold, what the broker carried, and what the server merged.

Every update that was made must be merged, exactly once. One that was refused, or that still waits in a device's
outbox when all have drained, counts as lost: in a demo nothing may stand in its way.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pollen.demo.history import Event
from pollen.demo.observer import Seen
from pollen.errors import PollenError


@dataclass(frozen=True, slots=True)
class Outbox:
    """A device's outbox after it ended: tasks whose receipt it has had (the last 64), and those that wait for one."""

    answered: frozenset[bytes]
    waiting: frozenset[bytes]


def read_outbox(path: Path) -> Outbox:
    """Read a device's outbox, without changing it; one that was never made is empty.

    Raises PollenError when it can't be read.
    """
    if not path.exists():
        return Outbox(frozenset(), frozenset())
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            answered = database.execute("SELECT task FROM answered").fetchall()
            waiting = database.execute("SELECT task FROM reply").fetchall()
    except sqlite3.Error as error:
        raise PollenError(f"{path}: the outbox can't be read ({error}), so what it held is unknown") from error
    return Outbox(frozenset(task for (task,) in answered), frozenset(task for (task,) in waiting))


def losses(outboxes: Mapping[str, Outbox], seen: Mapping[str, Seen], events: Sequence[Event]) -> list[str]:
    """One line for each device and each way in which something is missing; empty when nothing was lost."""
    merges = [event for event in events if event["event"] == "merge"]
    merged = Counter(event["device"] for event in merges)
    lines = [
        f"{event['device']}: an update was rejected: {event['reason']}"
        for event in events
        if event["event"] == "rejection"
    ]
    versions = [event["version"] for event in merges]
    if versions != list(range(1, len(merges) + 1)):
        lines.append(f"the history's {len(merges)} merges don't count the versions up one by one")
    for device, outbox in outboxes.items():
        watched = seen[device]
        receipts = sum(outcome == "merged" for outcome in watched.outcomes.values())
        if outbox.waiting:
            lines.append(f"{device}: {len(outbox.waiting)} update(s) in its outbox have no receipt")
        if silent := watched.published.keys() - watched.outcomes.keys() - outbox.waiting:
            lines.append(f"{device}: {len(silent)} update(s) went over the broker and got no receipt")
        if outbox.answered - watched.outcomes.keys():
            lines.append(f"{device}: it holds receipts that never went over the broker")
        if receipts != merged[device]:
            lines.append(f"{device}: {receipts} receipts say merged, the history has {merged[device]} merges")
    return lines
