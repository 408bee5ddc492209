"""What the device has learned about bundles, in one small file: which crashed it, which it refuses and why.

A graph that crashes the process would do so again after each restart. So before one runs for the first time, or trains
for the first time, that is written down; who finds it there at the start knows what ended the process.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pollen import __version__, atomic
from pollen.errors import BundleError

LOG = logging.getLogger(__name__)

CRASHES: Final = 3  # in a row; fewer may be power cuts
REFUSED: Final = 8
PROVEN: Final = 16
_FILE_BYTES: Final = 64 * 1024

Stage = Literal["run", "train", "predict"]  # what a bundle has to prove


class BundleRecord:
    """Kept in `file`; a damaged or missing one is an empty one. Another release of this software refuses nothing yet.

    A full disk costs what is written here, never the model.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._attempt: str | None = None
        self._crashes: dict[str, int] = {}
        self._proven: list[str] = []
        self._refused: dict[str, str] = {}
        self._for_now: dict[str, str] = {}
        self._trial: tuple[str, float | None] | None = None
        self._signed_at = 0
        self._read()
        if self._attempt is not None:
            self._crashed(self._attempt)

    @property
    def refused(self) -> dict[str, str]:
        """Why, by digest in hex, the oldest first."""
        return self._refused | self._for_now

    @property
    def signed_at(self) -> int:
        """No snapshot signed before this, in seconds since 1970, is to be believed."""
        return self._signed_at

    @property
    def trial(self) -> tuple[bytes, float | None] | None:
        """The bundle on trial and the error before it, None when that isn't known; None for no trial."""
        return None if self._trial is None else (bytes.fromhex(self._trial[0]), self._trial[1])

    def check(self, digest: bytes) -> None:
        """Raise BundleError when `digest` is refused."""
        reason = self.refused.get(digest.hex())
        if reason is not None:
            raise BundleError(f"bundle {digest.hex()[:8]} is refused on this device: {reason}")

    def refuse(self, digest: bytes, reason: str, *, for_now: bool = False) -> None:
        """Take it no more; `for_now`: until the process ends, since new settings may help."""
        refused = self._for_now if for_now else self._refused
        refused[digest.hex()] = reason
        while len(refused) > REFUSED:
            del refused[next(iter(refused))]
        if not for_now:
            self._write()

    def has_proven(self, digest: bytes, stage: Stage) -> bool:
        """Whether it did so before on this device."""
        return f"{stage} {digest.hex()}" in self._proven

    def attempt(self, digest: bytes) -> None:
        """It is about to do what may crash the process."""
        self._attempt = digest.hex()
        self._write()

    def rest(self) -> None:
        """It did not crash the process."""
        if self._attempt is not None:
            self._attempt = None
            self._write()

    def prove(self, digest: bytes, stage: Stage) -> None:
        """It has done so."""
        self._attempt = None
        self._crashes.pop(digest.hex(), None)
        entry = f"{stage} {digest.hex()}"
        self._proven = [*(other for other in self._proven if other != entry), entry][-PROVEN:]
        self._write()

    @contextmanager
    def attempting(self, digest: bytes) -> Iterator[None]:
        """`attempt`, and `rest` afterwards. Raises BundleError when it is refused."""
        self.check(digest)
        self.attempt(digest)
        try:
            yield
        finally:
            self.rest()

    def set_trial(self, trial: tuple[bytes, float | None] | None, signed_at: int = 0) -> None:
        """A trial begins or, with None, ends; `signed_at`: of the newest snapshot of the bundle before."""
        self._trial = None if trial is None else (trial[0].hex(), trial[1])
        self._signed_at = max(self._signed_at, signed_at)
        self._write()

    def _crashed(self, digest: str) -> None:
        count = self._crashes[digest] = self._crashes.get(digest, 0) + 1
        self._attempt = None
        LOG.error("the process ended while it tried bundle or graph %s, for the %d. time", digest[:8], count)
        if count >= CRASHES:
            del self._crashes[digest]
            self.refuse(bytes.fromhex(digest), f"it crashed this device {count} times")
        else:
            self._write()

    def _read(self) -> None:
        try:
            with self._file.open("rb") as file:
                found = json.loads(file.read(_FILE_BYTES))
            self._take(found)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            LOG.warning("%s: not used (%s); it begins anew", self._file, error)

    def _take(self, found: dict[str, Any]) -> None:
        signed_at, trial = int(found["signed_at"]), found["trial"]
        if trial is not None:
            trial = bytes.fromhex(trial[0]).hex(), None if trial[1] is None else float(trial[1])
        if found["software"] == __version__:
            attempt = None if found["attempt"] is None else bytes.fromhex(found["attempt"]).hex()
            crashes = {str(digest): int(count) for digest, count in found["crashes"].items()}
            refused = {str(digest): str(reason) for digest, reason in found["refused"].items()}
            self._attempt, self._crashes, self._refused = attempt, crashes, refused
            self._proven = [str(entry) for entry in found["proven"]]
        self._signed_at, self._trial = signed_at, trial

    def _write(self) -> None:
        content = {
            "software": __version__,
            "attempt": self._attempt,
            "crashes": self._crashes,
            "proven": self._proven,
            "refused": self._refused,
            "trial": self._trial,
            "signed_at": self._signed_at,
        }
        try:
            atomic.write(self._file, json.dumps(content, indent=1).encode())
        except OSError as error:
            LOG.error("%s: can't be written (%s)", self._file, error)
