"""The model bundle: one file with the training graph, its first weights, and how both are to be used.

A bundle is one canonical CBOR map: format `v`, `manifest`, `graph` (a .tflite file with the signatures
`grad` and `infer`), `weights` (float32 [P]), `state` (float32 [S]), `frozen` (float32 [C]) and `digest`, the SHA-256
of the canonical encoding of the map without it. The same model compiled twice gives the same bytes. A server that signs
its models adds `sig` (see `pollen.signing`), which is no part of the digest.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from pollen import atomic, cbor, manifest
from pollen.errors import BundleError, MessageError
from pollen.manifest import Loss, Manifest, Optimizer, Shape, Tensor
from pollen.sharing import Sharing
from pollen.signing import SIGNATURE_BYTES

__all__ = ["Bundle", "Floats", "Loss", "Manifest", "Optimizer", "Shape", "Tensor"]

FORMAT: Final = 2
LIMIT_BYTES: Final = 256 * 2**20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A compiled model. `weights` [P], `state` [S] and `frozen` [C], float32, are read-only: copy them to train.

    `frozen` stands in the graph too, as constants; here so that a Keras model can be made of the bundle again.

    `signature`: 72 bytes as in `pollen.signing`, None for none; here it isn't checked.

    Raises BundleError when sizes disagree with the manifest or a value isn't finite.
    """

    manifest: Manifest
    graph: bytes
    weights: Floats
    state: Floats
    frozen: Floats
    signature: bytes | None = None
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        manifest = self.manifest
        sizes = {"weights": manifest.parameters, "state": manifest.state_size, "frozen": manifest.frozen_size}
        for name, size in sizes.items():
            values = np.asarray(getattr(self, name))
            if values.dtype != np.float32 or values.shape != (size,):
                raise BundleError(
                    f"{name} are {values.dtype} {list(values.shape)}, "
                    f"the manifest says float32 [{size}]; compile it again"
                )
            if not np.isfinite(values).all():
                raise BundleError(f"{name} hold NaN or infinity; train the model again before compiling it")
            values = values.view()
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        object.__setattr__(self, "digest", _digest(self._content()))

    @property
    def shared(self) -> Floats:
        """The first values [F] of the tensors in `manifest.shared`, one after the other; read-only."""
        shared, _ = Sharing(self.manifest).split(self.weights, self.state)
        shared.flags.writeable = False
        return shared

    def values(self) -> dict[str, Floats]:
        """A copy of the first values of every tensor, personal and frozen ones included, by name."""
        tensors = self.manifest.weights + self.manifest.state + self.manifest.frozen
        flat = np.concatenate([self.weights, self.state, self.frozen])
        ends = np.cumsum([tensor.size for tensor in tensors])
        return {
            tensor.name: flat[end - tensor.size : end].reshape(tensor.shape)
            for tensor, end in zip(tensors, ends, strict=True)
        }

    def to_bytes(self) -> bytes:
        """The bundle file's content."""
        signature = {} if self.signature is None else {"sig": self.signature}
        return cbor.encode(self._content() | {"digest": self.digest} | signature)

    @classmethod
    def from_bytes(cls, payload: bytes, source: str) -> Self:
        """Read a bundle; `source` (a path or topic) names it in the BundleError raised when it is damaged."""
        try:
            content = cbor.decode(payload, LIMIT_BYTES)
        except MessageError as error:
            raise BundleError(f"{source}: not a whole bundle ({error}); compile or fetch it again") from error
        try:
            return cls._from_content(content)
        except BundleError as error:
            raise BundleError(f"{source}: {error}") from error

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a bundle file; BundleError when it can't be read or is damaged."""
        path = Path(path)
        try:
            size = path.stat().st_size
            if size > LIMIT_BYTES:
                raise BundleError(f"{path}: {size} bytes, a bundle has at most {LIMIT_BYTES}")
            payload = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: can't be read ({error.strerror}); make it with `pollen compile`") from error
        return cls.from_bytes(payload, str(path))

    def write(self, path: Path | str) -> None:
        """Write the bundle file atomically: after a crash the old file is there or the new one, whole."""
        path = Path(path)
        try:
            atomic.write(path, self.to_bytes(), mode=0o644)
            # The operator compiles, a service with an account of its own reads.
            path.chmod(0o644)
        except OSError as error:
            raise BundleError(
                f"{path}: can't be written ({error.strerror}); check the folder and its free space"
            ) from error

    def _content(self) -> dict[str, Any]:
        return {
            "v": FORMAT,
            "manifest": manifest.to_map(self.manifest),
            "graph": self.graph,
            "weights": self.weights,
            "state": self.state,
            "frozen": self.frozen,
        }

    @classmethod
    def _from_content(cls, content: Any) -> Self:
        if not isinstance(content, dict):
            raise BundleError("not a bundle; make one with `pollen compile`")
        version = manifest.get(content, "v", int)
        if version != FORMAT:
            raise BundleError(
                f"bundle format {version}, this software reads {FORMAT}; upgrade pollen-fl or compile again"
            )
        digest = manifest.get(content, "digest", bytes)
        signature = manifest.get(content, "sig", bytes) if "sig" in content else None
        if signature is not None and len(signature) != SIGNATURE_BYTES:
            raise BundleError(f"its signature has {len(signature)} bytes instead of {SIGNATURE_BYTES}; fetch it again")
        content = {name: value for name, value in content.items() if name not in ("digest", "sig")}
        if digest != _digest(content):
            raise BundleError("its digest doesn't match its content; compile or fetch it again")
        bundle = cls(
            manifest=manifest.from_map(manifest.get(content, "manifest", dict)),
            graph=manifest.get(content, "graph", bytes),
            weights=manifest.get(content, "weights", np.ndarray),
            state=manifest.get(content, "state", np.ndarray),
            frozen=manifest.get(content, "frozen", np.ndarray),
            signature=signature,
        )
        if bundle.digest != digest:
            raise BundleError("it holds fields this software doesn't know; upgrade pollen-fl or compile it again")
        return bundle


def _digest(content: dict[str, Any]) -> bytes:
    return hashlib.sha256(cbor.encode(content)).digest()
