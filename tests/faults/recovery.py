"""What a fault did and how long it took to be over: one table, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recovery:
    """One fault. `devices`: that it hit; `in_flight`: updates of theirs that it met on their way; `recovered_s`: from
    the fault's end until every device of the fleet had had an update merged. Each promised update was merged once."""

    fault: str
    devices: int
    lasted_s: float
    in_flight: int
    merged_meanwhile: int
    published_again: int
    receipts_again: int
    recovered_s: float


def table(recoveries: Sequence[Recovery]) -> list[str]:
    """Lines for people."""
    width = max(len(one.fault) for one in recoveries)
    head = "devices  lasted  in flight  merged meanwhile  published again  receipts again  recovered"
    lines = [f"{'fault':{width}}  {head}"]
    lines += [
        f"{one.fault:{width}}  {one.devices:7}  {one.lasted_s:4.0f} s  {one.in_flight:9}  {one.merged_meanwhile:16}"
        f"  {one.published_again:15}  {one.receipts_again:14}  {one.recovered_s:6.1f} s"
        for one in recoveries
    ]
    return lines


def write(path: Path, devices: int, recoveries: Sequence[Recovery]) -> None:
    """The same as JSON, times in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"devices": devices, "faults": [asdict(one) for one in recoveries]}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
