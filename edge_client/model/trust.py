"""The key by which the device knows its fleet's models."""

from pathlib import Path

from pollen.errors import SignatureError
from pollen.signing import ModelKey, Subject, signed_at


class ModelTrust:
    """Checks signatures when there is a key, and counts what was `refused`. Without a key everything is trusted.

    Raises SettingsError when the key can't be read.
    """

    def __init__(self, key: Path | None) -> None:
        self._key = None if key is None else ModelKey.read(key)
        self.refused = 0

    @property
    def asked_for(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    def check(self, signature: bytes | None, subject: Subject, *, not_before: int = 0) -> None:
        """Raise SignatureError unless `subject` is signed, and not before `not_before` (seconds since 1970)."""
        if self._key is None:
            return
        try:
            self._key.check(signature, subject)
            if signed_at(signature) < not_before:
                raise SignatureError(
                    f"{subject}: was signed before what this device has, so it may be an old one sent again; "
                    "if the server's clock was wrong, remove the folder model in the device's state_dir"
                )
        except SignatureError:
            self.refused += 1
            raise
