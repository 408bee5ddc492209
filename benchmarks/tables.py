"""Printing a benchmark's results: aligned columns, goals, and the same as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines of columns: the first to the left, the others to the right; floats with three significant digits."""
    cells = [list(header), *[[_shown(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        padded = [first[0].ljust(first[1]), *[cell.rjust(width) for cell, width in others]]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines)


def goal(what: str, seen: float, bound: float, *, least: bool) -> str:
    """One line that says whether a goal was met."""
    met = seen >= bound if least else seen <= bound
    sign = ">=" if least else "<="
    return f"  {what}: {_shown(seen)} (goal {sign} {_shown(bound)}: {'met' if met else 'missed'})"


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write `result` to `path`, when one was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
