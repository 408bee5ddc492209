"""The models a device knows: the compiled bundle in use and the one before it, each with its newest snapshot."""

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.model.trust import ModelTrust
from pollen import atomic, encoding, messages
from pollen.bundle import Bundle, Floats
from pollen.errors import BundleError, MessageError, SignatureError
from pollen.manifest import Manifest
from pollen.signing import Subject, signed_at

LOG = logging.getLogger(__name__)

SNAPSHOT_BYTES_A_DAY: Final = 4e6  # to the card; at least those of one snapshot


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The shared values [F] of one version of a model: trained weights, then state; read-only. `signed_at`: seconds
    since 1970, 0 when it isn't signed."""

    number: int
    weights: Floats
    signed_at: int = 0


def check_snapshot(
    payload: bytes,
    manifest: Manifest,
    limit_bytes: int,
    *,
    bundle: bytes = b"",
    trust: ModelTrust | None = None,
    not_before: int = 0,
) -> Version:
    """Decode a snapshot and compare it with the model. Raises MessageError: other model, shapes or digest.

    With `trust` it must be signed for the bundle with digest `bundle`, and not before `not_before` (seconds since
    1970); else SignatureError.
    """
    snapshot = messages.decode_snapshot(payload, limit_bytes)
    if snapshot.model != manifest.model:
        raise MessageError(f"weights: of model {snapshot.model!r}, expected {manifest.model!r}")
    weights = np.empty(manifest.shared_size, np.float32)
    encoding.decode_into(weights, snapshot.weights, manifest.shared)
    if hashlib.sha256(weights.data).digest() != snapshot.digest:
        raise MessageError(f"weights: version {snapshot.version} doesn't match its digest")
    if trust is not None:
        subject = Subject("weights", snapshot.model, snapshot.version, snapshot.digest, bundle)
        trust.check(snapshot.signature, subject, not_before=not_before)
    weights.flags.writeable = False
    return Version(snapshot.version, weights, signed_at(snapshot.signature))


class ModelStore:
    """The files below `folder`: current.bundle, current.weights, and previous.bundle, previous.weights. Written
    atomically; a snapshot only when its turn comes, see `flush`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._current = folder / "current.bundle"
        self._previous = folder / "previous.bundle"
        self._weights = folder / "current.weights"
        self._previous_weights = folder / "previous.weights"
        self._limit_bytes = limit_bytes
        self._waiting: bytes | None = None
        self._due = -math.inf

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

    def keep_bundle(self, payload: bytes, *, over: bool = False) -> None:
        """Make `payload` the current bundle; the one before it stays, or with `over` the one before that. A full disk
        costs the copy, not the model."""
        self.flush()
        try:
            if self._current.exists() and not over:
                _move(self._current, self._previous)
                _move(self._weights, self._previous_weights)
            self._weights.unlink(missing_ok=True)
            atomic.write(self._current, payload)
        except OSError as error:
            LOG.error(
                "%s: can't be written (%s); the model must be fetched again after a restart", self._current, error
            )

    def swap(self) -> None:
        """Make the previous bundle the current one, and the other way round, each with its snapshot."""
        self.flush()
        try:
            for current, previous in ((self._current, self._previous), (self._weights, self._previous_weights)):
                aside = current.with_name("aside")
                _move(current, aside)
                _move(previous, current)
                _move(aside, previous)
        except OSError as error:
            LOG.error("%s: can't be renamed (%s); the model must be fetched again", self._current, error)

    def snapshot(self, bundle: Bundle, trust: ModelTrust) -> Version | None:
        """The newest snapshot on disk of the current `bundle`, None when there is none for it."""
        path = self._weights
        try:
            payload = self._waiting or path.read_bytes()
            return check_snapshot(payload, bundle.manifest, self._limit_bytes, bundle=bundle.digest, trust=trust)
        except FileNotFoundError:
            return None
        except (OSError, MessageError, SignatureError) as error:
            LOG.warning("%s: not used: %s", path, error)
            return None

    def keep_snapshot(self, payload: bytes) -> None:
        """Keep the payload of a snapshot that was checked, from the next `flush` on."""
        self._waiting = payload

    def flush(self, now: float = math.inf) -> None:
        """Write the snapshot that waits, if there is one and its turn has come at `now`, monotonic seconds.

        Large ones are written less often. They can be fetched again, so a power cut costs no more than that; a device
        that is offline writes its last one at once.
        """
        payload = self._waiting
        if payload is None or now < self._due:
            return
        self._waiting = None
        if now < math.inf:
            self._due = now + len(payload) / SNAPSHOT_BYTES_A_DAY * 86400
        try:
            atomic.write(self._weights, payload)
        except OSError as error:
            LOG.error("%s: can't be written (%s); it is lost at a restart", self._weights, error)


def _move(path: Path, to: Path) -> None:
    """Rename a file where it is there, in place of `to`; without it `to` goes too, as nothing of its kind is left."""
    if path.exists():
        path.replace(to)
    else:
        to.unlink(missing_ok=True)
