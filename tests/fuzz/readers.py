"""Each reader of what a server sends: it gives a value or raises a PollenError, whatever the bytes."""

from collections.abc import Callable

from edge_client.model.store import check_snapshot
from edge_client.settings import Training
from edge_client.training import trainer
from pollen import cbor, manifest, messages
from pollen.bundle import Bundle
from pollen.errors import PollenError
from tests.fuzz import server_messages
from tests.fuzz.server_messages import LIMIT, MANIFEST


def read_task(payload: bytes) -> None:
    trainer.plan(Training(), messages.decode_task(payload).config)


def read_receipt(payload: bytes) -> None:
    messages.decode_receipt(payload)


def read_state(payload: bytes) -> None:
    messages.decode_state(payload)


def read_inference(payload: bytes) -> None:
    messages.decode_inference(payload, LIMIT)


def read_snapshot(payload: bytes) -> None:
    version = check_snapshot(payload, MANIFEST, LIMIT)
    assert version.weights.shape == (MANIFEST.shared_size,)


def read_bundle(payload: bytes) -> None:
    bundle = Bundle.from_bytes(payload, "fuzz")
    assert Bundle.from_bytes(bundle.to_bytes(), "again").digest == bundle.digest


def read_manifest(payload: bytes) -> None:
    content = cbor.decode(payload, LIMIT)
    if isinstance(content, dict):
        read = manifest.from_map(content)
        assert manifest.from_map(cbor.decode(cbor.encode(manifest.to_map(read)), LIMIT)) == read


READERS: dict[str, tuple[Callable[[bytes], None], Callable[[], bytes]]] = {
    "task": (read_task, server_messages.task),
    "receipt": (read_receipt, server_messages.receipt),
    "state": (read_state, server_messages.receipt),
    "inference": (read_inference, server_messages.inference),
    "snapshot": (read_snapshot, server_messages.snapshot),
    "bundle": (read_bundle, lambda: server_messages.bundle().to_bytes()),
    "manifest": (read_manifest, lambda: cbor.encode(manifest.to_map(MANIFEST))),
}


def holds(name: str, payload: bytes) -> None:
    """Let the reader `name` read `payload`; anything else than a PollenError of one line comes through."""
    try:
        READERS[name][0](payload)
    except PollenError as error:
        text = str(error)
    else:
        return
    assert text
    assert "\n" not in text
