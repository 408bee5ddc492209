"""The versions of a served model, in the folder of its state: which there are, writing one out, going back to one.

Reading works while the server runs; going back does not, since the server would go on with what it holds in memory.
"""

import io
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pollen import atomic
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import BundleError, PollenError, StoreError
from server import store_file, versions
from server.history import AsyncHistory
from server.privacy import PRIVACY
from server.rules.rule import Vector
from server.store import StateStore
from server.versions import KeptVersion

STATE: Final = "state.sqlite"
HISTORY: Final = "history.jsonl"


@dataclass(frozen=True, slots=True)
class Exported:
    """The weights of one version by tensor name, with the bundle that they belong to and its file."""

    version: int
    weights: dict[str, Vector]
    bundle: Bundle
    source: Path


def keep_bundle(folder: Path, bundle: Bundle) -> None:
    """Keep a copy of `bundle` beside the state, for `export`; the name says which, as another state may follow."""
    path = bundle_path(folder, bundle.digest)
    if not path.exists():
        bundle.write(path)


def kept_versions(folder: Path) -> list[KeptVersion]:
    """The versions whose weights are there, oldest first. Raises StoreError."""
    with _reading(folder) as db:
        return versions.kept_versions(db)


def export(folder: Path, version: int | None = None) -> Exported:
    """The weights of `version`, by default of the newest. Raises StoreError naming the nearest that is kept."""
    with _reading(folder) as db:
        row = db.execute("SELECT bundle, version FROM model").fetchone()
        number = (0 if row is None else row[1]) if version is None else version
        weights = np.frombuffer(versions.weights_of(db, number, str(folder / STATE)), "<f4").astype(np.float32)
    source = bundle_path(folder, row[0])
    try:
        bundle = Bundle.read(source)
    except BundleError as error:
        raise StoreError(f"{error}; a copy is put there when `pollen-server` starts") from error
    return Exported(number, named(weights, bundle.manifest.shared), bundle, source)


def roll_back(folder: Path, version: int) -> int:
    """Make the weights of `version` the next version; returns that. Raises StoreError, also while a server runs.

    The versions after `version` are withdrawn: updates trained from them will be refused. What the merge rule and the
    guard remember is dropped, as it comes from those; what devices have spent of their privacy stays spent. Open
    tasks, answers and counters stay.
    """
    _check_there(folder)
    store = StateStore(folder / STATE)
    try:
        newest = store.roll_back(version, time.time(), keep=PRIVACY)
    finally:
        store.close()
    history = AsyncHistory(folder / HISTORY)
    history.add_event("rollback", newest, to=version)
    history.close()
    return newest


def write_npz(weights: Mapping[str, Vector], path: Path) -> None:
    """Write `weights` as an .npz file, atomically. Raises PollenError when the disk refuses."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **weights)
    try:
        atomic.write(path, file.getvalue(), mode=0o644)
    except OSError as error:
        raise PollenError(f"{path}: can't be written ({error.strerror}); the weights are safe in the state") from error


def bundle_path(folder: Path, digest: bytes) -> Path:
    """Where `keep_bundle` puts the bundle with this digest."""
    return folder / f"model-{digest.hex()[:12]}.bundle"


def _check_there(folder: Path) -> None:
    if not (folder / STATE).is_file():
        inside = ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{STATE}")))
        raise StoreError(f"{folder / STATE}: no such file; give " + (f"one of {inside}" if inside else "a state_dir"))


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    _check_there(folder)
    path = folder / STATE
    try:
        with closing(store_file.read_only(path)) as db:
            store_file.check_format(db, path)
            db.execute("BEGIN")  # one moment of a server that goes on
            yield db
    except sqlite3.Error as error:
        raise StoreError(f"{path}: can't be read ({error}); {store_file.UNREAD}") from error
