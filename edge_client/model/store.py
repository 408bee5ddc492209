"""The models a device knows: the compiled bundle in use, the one before it, and the newest snapshot of weights."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pollen import atomic, encoding, messages
from pollen.bundle import Bundle, Floats
from pollen.errors import BundleError, MessageError
from pollen.manifest import Manifest

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The shared values [F] of one version of a model: trained weights, then state; read-only."""

    number: int
    weights: Floats


def check_snapshot(payload: bytes, manifest: Manifest, limit_bytes: int) -> Version:
    """Decode a snapshot and compare it with the model. Raises MessageError: other model, shapes or digest."""
    snapshot = messages.decode_snapshot(payload, limit_bytes)
    if snapshot.model != manifest.model:
        raise MessageError(f"weights: of model {snapshot.model!r}, expected {manifest.model!r}")
    weights = np.empty(manifest.shared_size, np.float32)
    encoding.decode_into(weights, snapshot.weights, manifest.shared)
    if hashlib.sha256(weights.data).digest() != snapshot.digest:
        raise MessageError(f"weights: version {snapshot.version} doesn't match its digest")
    weights.flags.writeable = False
    return Version(snapshot.version, weights)


class ModelStore:
    """The files below `folder`: current.bundle, previous.bundle, current.weights. Written atomically."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._current = folder / "current.bundle"
        self._previous = folder / "previous.bundle"
        self._weights = folder / "current.weights"
        self._limit_bytes = limit_bytes

    def bundles(self) -> list[Bundle]:
        """The bundles on disk that can be read, the current one first."""
        found = []
        for path in (self._current, self._previous):
            if not path.exists():
                continue
            try:
                found.append(Bundle.read(path))
            except BundleError as error:
                LOG.warning("%s", error)
        return found

    def keep_bundle(self, payload: bytes) -> None:
        """Make `payload` the current bundle; the one before it stays. A full disk costs the copy, not the model."""
        try:
            if self._current.exists():
                self._current.replace(self._previous)
            atomic.write(self._current, payload)
        except OSError as error:
            LOG.error(
                "%s: can't be written (%s); the model must be fetched again after a restart", self._current, error
            )

    def snapshot(self, manifest: Manifest) -> Version | None:
        """The snapshot on disk, None when there is none for this model."""
        try:
            return check_snapshot(self._weights.read_bytes(), manifest, self._limit_bytes)
        except FileNotFoundError:
            return None
        except (OSError, MessageError) as error:
            LOG.warning("%s: not used: %s", self._weights, error)
            return None

    def keep_snapshot(self, payload: bytes) -> None:
        """Keep the payload of a snapshot that was checked, if the disk has room."""
        try:
            atomic.write(self._weights, payload)
        except OSError as error:
            LOG.error("%s: can't be written (%s); it is lost at a restart", self._weights, error)
