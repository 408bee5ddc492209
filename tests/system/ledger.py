"""The books after a run: every update a device made against every merge the server committed."""

import re
from collections import Counter
from dataclasses import dataclass

from tests.system.whole import Whole, log_lines, read

_RECEIPT = re.compile(
    r"update (?P<seq>\d+) \(task (?P<task>[0-9a-f]{8})\) (?P<outcome>\w+): version (?P<version>\d+),.* "
    r"staleness (?P<staleness>\d+)"
)


@dataclass(frozen=True, slots=True)
class Merged:
    """One merge as the device was told of it. `task`: the first 8 hex digits."""

    device: str
    task: str
    seq: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was found. `merges` by version; `made`: sequence numbers given out; `replaced`: updates that a newer one
    for the same task took the place of before they were sent; `published_again`: publishes of an update beyond its
    first; `receipts_again`: receipts beyond an update's first."""

    version: int
    merges: dict[int, Merged]
    made: dict[str, int]
    replaced: int
    published_again: int
    receipts_again: int

    def __str__(self) -> str:
        return (
            f"{self.version} merges of {sum(self.made.values())} updates made ({self.replaced} replaced unsent), "
            f"{self.published_again} published again, {self.receipts_again} receipts sent again"
        )


def audit(whole: Whole, devices: tuple[str, ...]) -> Ledger:
    """Compare the stopped devices' outboxes, logs, and the receipts on the broker with the server's state store.

    Not with history.jsonl alone: a kill between a commit and the line for it leaves a hole there. The state store's
    version counts the commits; each version must belong to exactly one update of one device, by the receipts, and
    each update that ever left a device to exactly one version.
    """
    version = whole.version()
    # Answers are numbered from 1; the newest is never deleted, so its number counts all there ever were.
    ((answers,),) = read(whole.folder / "server" / "state.sqlite", "SELECT max(number) FROM answered")
    assert version == answers, f"version {version}, but {answers} tasks were answered"

    merges = _merges(whole, devices)
    assert sorted(merges) == list(range(1, version + 1)), "each version belongs to one receipt, with no hole"
    by_update = Counter((merged.device, merged.seq) for merged in merges.values())
    assert set(by_update.values()) == {1}, "no update is in two versions"
    by_task = Counter((merged.device, merged.task) for merged in merges.values())
    assert set(by_task.values()) == {1}, "no task is in two versions"

    made = {}
    for device in devices:
        outbox = whole.folder / device / "outbox.sqlite"
        assert read(outbox, "SELECT * FROM reply") == [], f"{device} still waits for receipts"
        ((made[device],),) = read(outbox, "SELECT value FROM counter WHERE name = 'seq'")
        newest = max(merged.seq for merged in merges.values() if merged.device == device)
        assert newest == made[device], f"{device} made update {made[device]}, the newest merged is {newest}"
    assert whole.observer is not None
    published = whole.observer.updates()
    lost = {(device, seq) for device, _, seq in published if device in devices} - set(by_update)
    assert lost == set(), "every update that left a device is merged"
    _check_history(whole, merges)
    receipts = whole.observer.receipts()
    return Ledger(
        version=version,
        merges=merges,
        made=made,
        replaced=sum(made.values()) - len(by_update),
        published_again=sum(count - 1 for count in published.values()),
        receipts_again=sum(count - 1 for count in receipts.values()),
    )


def _merges(whole: Whole, devices: tuple[str, ...]) -> dict[int, Merged]:
    """By version, from both ends of the receipts: the devices' logs, and what went over the broker.

    Either alone may lack one: a killed device's log, or the observer while the broker is down.
    """
    merges: dict[int, Merged] = {}

    def add(version: int, merged: Merged) -> None:
        assert merges.setdefault(version, merged) == merged, f"version {version}: {merges[version]} and {merged}"

    for device in devices:
        for line in log_lines(whole.log(device)):
            if found := _RECEIPT.search(line):
                assert found["outcome"] == "merged", f"{device}: {line}"
                add(int(found["version"]), Merged(device, found["task"], int(found["seq"])))
    assert whole.observer is not None
    for device, receipt in whole.observer.receipts():
        if device in devices:
            assert receipt.outcome == "merged", f"{device}: {receipt}"
            add(receipt.version, Merged(device, receipt.task.hex()[:8], receipt.seq))
    return merges


def _check_history(whole: Whole, merges: dict[int, Merged]) -> None:
    """history.jsonl: each version at most once, in order, and with the device that was told so."""
    lines = whole.history()
    versions = [line["version"] for line in lines]
    assert versions == sorted(set(versions))
    for line in lines:
        assert merges[line["version"]].device == line["device"]
