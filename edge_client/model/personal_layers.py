"""The personal layers' values, which never leave the device: rows of the outbox's database, one a bundle.

They stand beside the updates so that both are of the same training, whenever the process ends.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

import numpy as np

from pollen.bundle import Floats
from pollen.manifest import Manifest

KEPT: Final = 2  # bundles: that in use and the one before it, to which the server may go back
TABLE: Final = """
CREATE TABLE personal (
    bundle BLOB NOT NULL UNIQUE, layout TEXT NOT NULL, steps INTEGER NOT NULL, vector BLOB NOT NULL,
    position INTEGER PRIMARY KEY AUTOINCREMENT
);
"""


@dataclass(frozen=True, slots=True, eq=False)
class Personal:
    """What the device trained of the model `bundle` for itself: `values` [Q] of the tensors that `layout` describes,
    after `steps` training steps."""

    bundle: bytes
    layout: str
    steps: int
    values: Floats


def layout_of(manifest: Manifest) -> str:
    """The model's name and the names and shapes of its personal tensors, in the order of their values."""
    tensors = [tensor for tensor in manifest.weights + manifest.state if tensor.layer in manifest.personal]
    return " ".join([manifest.model, *(f"{tensor.name}{list(tensor.shape)}" for tensor in tensors)])


def keep(database: sqlite3.Connection, personal: Personal) -> None:
    """Store `personal` in place of what is there of its bundle; only the last `KEPT` bundles' values stay."""
    database.execute(
        "INSERT OR REPLACE INTO personal (bundle, layout, steps, vector) VALUES (?, ?, ?, ?)",
        (personal.bundle, personal.layout, personal.steps, personal.values.astype(np.float32, copy=False).data),
    )
    database.execute(
        "DELETE FROM personal WHERE position NOT IN (SELECT position FROM personal ORDER BY position DESC LIMIT ?)",
        (KEPT,),
    )


def find(database: sqlite3.Connection, bundle: bytes, layout: str) -> Personal | None:
    """What is kept of `bundle`, or else the newest values of the same `layout`, with no steps done; None: neither."""
    found = database.execute(
        "SELECT bundle, steps, vector FROM personal WHERE layout = ? ORDER BY bundle = ? DESC, position DESC LIMIT 1",
        (layout, bundle),
    ).fetchone()
    if found is None:
        return None
    return Personal(bundle, layout, found[1] if found[0] == bundle else 0, np.frombuffer(found[2], np.float32))
