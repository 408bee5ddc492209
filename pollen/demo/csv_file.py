"""Recorded sensor data in a CSV file with a header: one reading a row, one channel a column."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pollen.demo.recording import Array, DataError, Recording, finished

OWNERS = ("subject", "device")
NOT_CHANNELS = (*OWNERS, "label", "target", "time")


def read(path: Path) -> Recording:
    """Read a CSV file: column `subject` or `device` says whose reading a row is; `label` (text or whole numbers)
    makes it classification, `target` regression, neither a forecast; `time` is ignored; every other column is
    a channel of numbers. Rows with an empty cell are left out and counted. Raises DataError naming file, line
    and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            columns = _columns(path, header)
            readings, labels, owners = _rows(path, header, columns, lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as CSV: {error}") from error
    if not readings:
        raise DataError(f"{path}: no row below the header")
    channels = tuple(name for name in header if name not in NOT_CHANNELS)
    x = np.array(readings, np.float32)
    return finished(path, x, _label_array(columns, labels), subject=np.array(owners), channels=channels)


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    if not any(header):
        raise DataError(f"{path}: the first line must name the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} is there twice")
    if not any(name in header for name in OWNERS):
        raise DataError(f"{path}: needs a column 'subject' or 'device' that says whose reading each row is")
    if "label" in header and "target" in header:
        raise DataError(f"{path}: has a column 'label' and a column 'target'; keep one of them")
    if all(name in NOT_CHANNELS for name in header):
        raise DataError(f"{path}: no channel: every column is one of {', '.join(NOT_CHANNELS)}")
    return {name: position for position, name in enumerate(header)}


def _rows(
    path: Path, header: list[str], columns: dict[str, int], lines: Iterator[list[str]]
) -> tuple[list[list[float]], list[str], list[str]]:
    owner = columns[next(name for name in OWNERS if name in columns)]
    answer = columns.get("label", columns.get("target"))
    channels = [(name, columns[name]) for name in header if name not in NOT_CHANNELS]
    readings: list[list[float]] = []
    labels: list[str] = []
    owners: list[str] = []
    for number, row in enumerate(lines, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(f"{path}: line {number} has {len(row)} cells, the header has {len(header)}")
        readings.append([_number(path, number, name, row[position]) for name, position in channels])
        owners.append(row[owner].strip())
        if not owners[-1]:
            raise DataError(f"{path}: line {number}, column {header[owner]!r} is empty")
        if answer is not None:
            labels.append(row[answer].strip())
            if header[answer] == "target":
                _number(path, number, "target", labels[-1])
            elif not labels[-1]:  # a reading nobody labelled: left out with the incomplete ones
                readings[-1][0] = float("nan")
    return readings, labels, owners


def _number(path: Path, line: int, column: str, cell: str) -> float:
    """The cell's value, NaN when it is empty."""
    if not cell.strip():
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise DataError(
            f"{path}: line {line}, column {column!r}: {cell!r} is no number; give the column another name "
            f"({', '.join(NOT_CHANNELS)}) or remove it"
        ) from None


def _label_array(columns: dict[str, int], labels: list[str]) -> Array | None:
    if "target" in columns:
        return np.array([float(text) if text else float("nan") for text in labels], np.float32)
    if "label" not in columns:
        return None
    try:
        return np.array([int(text) for text in labels])
    except ValueError:
        return np.array(labels)
