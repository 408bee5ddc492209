"""Signed models: Ed25519 (RFC 8032) over what a bundle, a snapshot of weights or an inference graph is.

What is signed is a canonical CBOR list of a context, the kind, the model, the version, digests, and when it was signed,
so that a signature is worth nothing for another kind, model or version. A signature on the wire has 72 bytes: the time,
whole seconds since 1970 (big-endian uint64), then Ed25519's 64.

The library `cryptography` (extra `signing`) is loaded when a key is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from pollen import atomic, cbor
from pollen.errors import SettingsError, SignatureError

CONTEXT: Final = "pollen model 1"
SIGNATURE_BYTES: Final = 72
PRIVATE: Final = "model-key.pem"
PUBLIC: Final = "model-key.pub.pem"
_TIME_BYTES: Final = 8
_KEY_FILE_BYTES: Final = 16 * 1024

Kind = Literal["bundle", "weights", "infer"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is signed. `digest`: SHA-256 of the bundle, the weights or the graph; `bundle`: of the compiled model it
    goes with. A bundle has version 0, and its own digest twice."""

    kind: Kind
    model: str
    version: int
    digest: bytes
    bundle: bytes

    def statement(self, at: int) -> bytes:
        """The bytes that are signed, `at` seconds since 1970."""
        return cbor.encode([CONTEXT, self.kind, self.model, self.version, self.digest, self.bundle, at])

    def __str__(self) -> str:
        version = f"version {self.version} " if self.version else ""
        return f"{self.kind}: {version}of model {self.model!r}"


class SigningKey:
    """A fleet's private model key; `clock` gives seconds since 1970."""

    def __init__(self, key: Any, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file. Raises SettingsError when it can't be used, or `cryptography` is missing."""
        key = _load(path, "private")
        return cls(key)

    def sign(self, subject: Subject) -> bytes:
        """The 72 bytes that prove whose `subject` is."""
        at = int(self._clock())
        signature: bytes = self._key.sign(subject.statement(at))
        return at.to_bytes(_TIME_BYTES, "big") + signature


class ModelKey:
    """The public half, on the devices."""

    def __init__(self, key: Any) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file. Raises SettingsError when it can't be used, or `cryptography` is missing."""
        return cls(_load(path, "public"))

    def check(self, signature: bytes | None, subject: Subject) -> None:
        """Raise SignatureError unless `signature` is this key's for just this `subject`."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

        if signature is None:
            raise SignatureError(
                f"{subject}: isn't signed, as trust.key asks; set signing_key on the server, or leave trust.key out"
            )
        if len(signature) == SIGNATURE_BYTES:
            try:
                self._key.verify(signature[_TIME_BYTES:], subject.statement(signed_at(signature)))
            except InvalidSignature:
                pass
            else:
                return
        raise SignatureError(
            f"{subject}: isn't signed by the owner of trust.key; compare it with the server's {PUBLIC}"
        )


def signed_at(signature: bytes | None) -> int:
    """When a signature says it was made, in seconds since 1970; 0 for none."""
    return 0 if signature is None else int.from_bytes(signature[:_TIME_BYTES], "big")


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new pair of keys, the private one readable by its owner only; (private, public) files.

    Raises SettingsError when there is one already, or the files can't be written.
    """
    private, public = folder / PRIVATE, folder / PUBLIC
    for path in (private, public):
        if path.exists():
            raise SettingsError(f"{path}: is there already, and devices may trust it; give another folder")
    serialization, ed25519 = _library(folder)
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    known = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        atomic.write(private, secret, mode=0o600)
        atomic.write(public, known, mode=0o644)
    except OSError as error:
        raise SettingsError(f"{folder}: can't be written ({error.strerror}); give another folder") from error
    return private, public


def _load(path: Path, half: Literal["private", "public"]) -> Any:
    serialization, ed25519 = _library(path)
    try:
        with path.open("rb") as file:
            pem = file.read(_KEY_FILE_BYTES)
    except OSError as error:
        raise SettingsError(f"{path}: can't be read ({error.strerror}); make keys with `pollen sign-key`") from error
    try:
        if half == "private":
            key, wanted = serialization.load_pem_private_key(pem, None), ed25519.Ed25519PrivateKey
        else:
            key, wanted = serialization.load_pem_public_key(pem), ed25519.Ed25519PublicKey
    except (ValueError, TypeError, _unsupported()) as error:
        other = PRIVATE if half == "private" else PUBLIC
        raise SettingsError(
            f"{path}: is no {half} key in PEM form without a password; give the {other} of `pollen sign-key`"
        ) from error
    if not isinstance(key, wanted):
        raise SettingsError(f"{path}: is no Ed25519 key; make one with `pollen sign-key`")
    return key


def _library(path: Path) -> tuple[Any, Any]:
    """(serialization, ed25519) of `cryptography`. Raises SettingsError, naming the key `path`, when it is missing."""
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"{path}: keys need the package cryptography: pip install 'pollen-fl[signing]'") from error
    return serialization, ed25519


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    return UnsupportedAlgorithm
