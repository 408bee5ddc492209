"""Rows of devices as a table of plain text."""

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]

UNKNOWN: Final = "-"
WIDEST: Final = 40  # characters; what a device says of itself may be long


def age(row: Row, now: float) -> str:
    """How long ago it was last seen: 12 s, 3 min, 5 h, 9 d."""
    at = row["last_seen"]
    if at is None:
        return "never"
    seconds = max(0.0, now - at)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def state(row: Row) -> str:
    """Blocked, online or offline."""
    return "blocked" if row["blocked"] else "online" if row["online"] else "offline"


def _number(name: str, digits: int | None = None) -> Callable[[Row, float], str]:
    def shown(row: Row, _now: float) -> str:
        value = row[name]
        return UNKNOWN if value is None else str(value) if digits is None else f"{value:.{digits}f}"

    return shown


# Title, whether it is a number (flush right), and how it is shown.
COLUMNS: Final[Sequence[tuple[str, bool, Callable[[Row, float], str]]]] = (
    ("DEVICE", False, lambda row, _: row["name"]),
    ("STATE", False, lambda row, _: state(row)),
    ("SEEN", True, age),
    ("VERSION", True, _number("version")),
    ("STALENESS", True, _number("staleness")),
    ("BEHIND", True, _number("behind")),
    ("UPDATES", True, _number("updates")),
    ("REJECTED", True, _number("rejected")),
    ("TEMP °C", True, _number("temperature_celsius", 1)),
    ("SOFTWARE", False, lambda row, _: row["software"] or UNKNOWN),
)

# What --sort takes: the key, and whether the largest comes first. What is not known comes last.
SORTS: Final[Mapping[str, tuple[str, bool]]] = {
    "name": ("name", False),
    "seen": ("last_seen", True),
    "version": ("version", False),
    "staleness": ("staleness", True),
    "behind": ("behind", True),
    "updates": ("updates", True),
    "rejected": ("rejected", True),
    "temperature": ("temperature_celsius", True),
    "software": ("software", False),
}


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """`rows` by one of SORTS; equal ones by name."""
    key, largest_first = SORTS[sort]
    by_name = sorted(rows, key=lambda row: str(row["name"]))
    known = [row for row in by_name if row[key] is not None]
    return sorted(known, key=lambda row: row[key], reverse=largest_first) + [row for row in by_name if row[key] is None]


def table(rows: Sequence[Row], now: float | None = None) -> list[str]:
    """A line of titles and one for each row, every column as wide as it must be; `now`: the server's clock."""
    at = time.time() if now is None else now
    cells = [[title for title, _, _ in COLUMNS], *([plain(show(row, at)) for _, _, show in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, (_, number, _) in zip(line, widths, COLUMNS, strict=True)
        ).rstrip()
        for line in cells
    ]


def plain(text: str, widest: int = WIDEST) -> str:
    """`text` without what a terminal would take as a command or would turn around, and cut where it is long."""
    shown = "".join("?" if unicodedata.category(sign)[0] in "CZ" and sign != " " else sign for sign in text)
    return shown if len(shown) <= widest else shown[: widest - 1] + "…"
