"""A server with a signing key signs everything it publishes of a model."""

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pollen import messages, signing
from pollen.bundle import Bundle
from pollen.errors import SignatureError
from pollen.messages import Inference
from pollen.signing import ModelKey, Subject
from server import GatewayGrid, Listen
from tests.server import gateway_client
from tests.server.gateway_client import GatewayClient, update
from tests.server.test_command import refusal, start

pytest.importorskip("cryptography")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gateway_client.bundle().write(tmp_path / "m.bundle")
    signing.make_keys(tmp_path / "keys")
    return tmp_path


def server_toml(folder: Path, key: str = "keys/model-key.pem") -> Path:
    path = folder / "server.toml"
    path.write_text(
        f'bundle = "m.bundle"\nstate_dir = "state"\nsigning_key = "{key}"\n'
        '[listen]\nport = 0\n[publish]\nmin_interval_s = 0.0\n[merge]\nrule = "fedasync"\n'
    )
    return path


def check_weights(key: ModelKey, payload: bytes, bundle: Bundle) -> int:
    snapshot = messages.decode_snapshot(payload, 10**6)
    subject = Subject("weights", "small", snapshot.version, snapshot.digest, bundle.digest)
    key.check(snapshot.signature, subject)
    with pytest.raises(SignatureError):
        key.check(snapshot.signature, replace(subject, version=snapshot.version + 1))
    return snapshot.version


def test_bundle_and_every_snapshot_are_signed(folder: Path) -> None:
    process, lines = start(folder, server_toml(folder))
    port = int(lines[-1].rsplit(":", 1)[1])
    key, bundle = ModelKey.read(folder / "keys" / "model-key.pub.pem"), Bundle.read(folder / "m.bundle")
    try:
        with GatewayClient(port) as gateway:
            published = Bundle.from_bytes(gateway.model("bundle"), "published")
            assert published.digest == bundle.digest
            key.check(published.signature, Subject("bundle", "small", 0, bundle.digest, bundle.digest))
            gateway.birth("pi-1")
            assert check_weights(key, gateway.model("weights"), bundle) == 0
            gateway.upload("pi-1", update(gateway.task("pi-1"), published, 1.0))
            assert check_weights(key, gateway.model("weights"), bundle) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0, log
    kept = next((folder / "state").glob("model-*.bundle"))
    assert kept.read_bytes() == (folder / "m.bundle").read_bytes()  # on disk it stays as it was compiled


@pytest.fixture
def grid(folder: Path) -> Iterator[GatewayGrid]:
    key = signing.SigningKey.read(folder / "keys" / "model-key.pem")
    with GatewayGrid(gateway_client.bundle(), listen=Listen(port=0), signing_key=key) as grid:
        yield grid


def test_an_inference_graph_is_signed_with_its_version(grid: GatewayGrid, folder: Path) -> None:
    bundle = grid.link.bundle
    grid.link.publish(4, bundle.shared)
    digest = hashlib.sha256(b"graph").digest()
    grid.link.publish_inference(Inference("small", 4, "float32", bundle.digest, digest, b"graph"))
    with GatewayClient(grid.port) as gateway:
        message = messages.decode_inference(gateway.model("infer"), 10**6)
    key = ModelKey.read(folder / "keys" / "model-key.pub.pem")
    key.check(message.signature, Subject("infer", "small", 4, digest, bundle.digest))
    with pytest.raises(SignatureError):
        key.check(message.signature, Subject("infer", "small", 5, digest, bundle.digest))


def test_without_a_key_messages_are_as_they_always_were() -> None:
    with GatewayGrid(gateway_client.bundle(), listen=Listen(port=0)) as grid:
        grid.link.publish(0, grid.link.bundle.shared)
        with GatewayClient(grid.port) as gateway:
            assert gateway.model("bundle") == grid.link.bundle.to_bytes()
            assert b"sig" not in gateway.model("weights")


def test_a_key_that_cannot_be_used_is_a_settings_error(folder: Path) -> None:
    assert "pollen sign-key" in refusal(folder, server_toml(folder, key="keys/none.pem"), 2)
