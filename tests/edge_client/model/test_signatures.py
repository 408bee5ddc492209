"""A device with `trust.key` believes what the owner of the key has signed, and nothing else."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pollen import encoding, messages, signing, topics
from pollen.bundle import Bundle
from pollen.messages import Result, Snapshot
from pollen.signing import SigningKey, Subject
from tests.edge_client.fleet import FLEET, Device, Server, write_settings

pytest.importorskip("cryptography")
Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]
BUNDLE = topics.model(FLEET, "telemetry", "bundle")
WEIGHTS = topics.model(FLEET, "telemetry", "weights")
PATIENCE_S = 60.0


class Owner:
    """Who has the key, and publishes with it; `now` is its clock."""

    def __init__(self, folder: Path) -> None:
        private, self.public = signing.make_keys(folder)
        self.now = 1_000
        self.key = SigningKey(SigningKey.read(private)._key, lambda: self.now)

    def bundle(self, bundle: Bundle) -> bytes:
        subject = Subject("bundle", bundle.manifest.model, 0, bundle.digest, bundle.digest)
        return replace(bundle, signature=self.key.sign(subject)).to_bytes()

    def weights(self, bundle: Bundle, number: int, /, **changes: object) -> bytes:
        shared = bundle.shared
        digest = hashlib.sha256(shared.tobytes()).digest()
        model = bundle.manifest.model
        signature = self.key.sign(Subject("weights", model, number, digest, bundle.digest))
        snapshot = Snapshot(model, number, digest, encoding.named(shared, bundle.manifest.shared), signature)
        return messages.encode(replace(snapshot, **changes))  # type: ignore[arg-type]


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path / "keys")


def refused(server: Server) -> float:
    return server.vitals().get("refused_models", -1.0)


def answer(server: Server, task: bytes) -> Result:
    reply = server.result(task, PATIENCE_S)
    server.receipt(reply, outcome="accepted")
    return reply


def test_a_bundle_must_be_signed_by_the_owner_of_the_key(
    server: Server, device: Devices, bundles: Bundles, owner: Owner, tmp_path: Path
) -> None:
    bundle = bundles("forecast")
    one = device(trust={"key": str(owner.public)})
    stranger = Owner(tmp_path / "stranger")
    signature = Bundle.from_bytes(owner.bundle(bundles("wide")), "").signature
    payloads = {
        "isn't signed, as trust.key asks": bundle.to_bytes(),
        "isn't signed by the owner of trust.key": stranger.bundle(bundle),
        "isn't signed by the owner": replace(bundle, signature=signature).to_bytes(),
    }
    for count, (error, payload) in enumerate(payloads.items(), 1):
        server.publish_raw(BUNDLE, payload, retain=True)
        assert error in answer(server, server.task(bundle)).error
        server.wait_for(lambda expected=count: refused(server) == expected, PATIENCE_S, f"{count} refusals")
    assert not (one.state_dir / "model" / "current.bundle").exists()
    assert "model telemetry, " not in one.log()  # nothing was loaded
    server.publish_raw(BUNDLE, owner.bundle(bundle), retain=True)
    server.publish_raw(WEIGHTS, owner.weights(bundle, 7), retain=True)
    assert server.update(server.task(bundle, version=7), PATIENCE_S).base == 7


def test_weights_must_be_signed_for_this_version_of_this_bundle(
    server: Server, device: Devices, bundles: Bundles, owner: Owner
) -> None:
    bundle = bundles("forecast")
    server.publish_raw(BUNDLE, owner.bundle(bundle), retain=True)
    shared = bundle.shared + np.float32(1.0)
    tampered = {
        "weights": encoding.named(shared, bundle.manifest.shared),
        "digest": hashlib.sha256(shared.tobytes()).digest(),
    }
    other = replace(bundle, manifest=replace(bundle.manifest, architecture="another"))
    hostile = [
        owner.weights(bundle, 7, signature=None),
        owner.weights(bundle, 7, **tampered),
        owner.weights(bundle, 7, version=8),
        owner.weights(other, 7),
    ]
    server.publish_raw(WEIGHTS, hostile[0], retain=True)
    one = device(trust={"key": str(owner.public)})
    task = server.task(bundle, version=7)
    for count, payload in enumerate(hostile, 1):
        server.publish_raw(WEIGHTS, payload, retain=True)
        server.wait_for(lambda expected=count: refused(server) >= expected, PATIENCE_S, f"{count} refusals")
    assert not server.updates()
    server.publish_raw(WEIGHTS, owner.weights(bundle, 7), retain=True)
    assert server.update(task, PATIENCE_S).base == 7
    assert "isn't signed" in one.log()


def test_an_old_snapshot_sent_again_is_left_alone_whatever_the_task_says(
    server: Server, device: Devices, bundles: Bundles, owner: Owner
) -> None:
    bundle = bundles("forecast")
    server.publish_raw(BUNDLE, owner.bundle(bundle), retain=True)
    old = owner.weights(bundle, 3)
    owner.now = 2_000
    server.publish_raw(WEIGHTS, owner.weights(bundle, 9), retain=True)
    one = device(trust={"key": str(owner.public)})
    update = server.update(server.task(bundle, version=9), PATIENCE_S)
    server.receipt(update)
    server.publish_raw(WEIGHTS, old, retain=True)
    again = server.update(server.task(bundle, version=0), PATIENCE_S)
    assert (update.base, again.base) == (9, 9)
    assert "version 3 was signed before version 9; left alone" in one.log()
    server.receipt(again)
    # A server that went back to a backup signs a lower version later: that is no old one.
    owner.now = 3_000
    server.publish_raw(WEIGHTS, owner.weights(bundle, 5), retain=True)
    assert server.update(server.task(bundle, version=5), PATIENCE_S).base == 5


def test_an_old_bundle_sent_again_is_refused(server: Server, device: Devices, bundles: Bundles, owner: Owner) -> None:
    old, new = bundles("forecast"), bundles("wide")
    old_payload = owner.bundle(old)
    owner.now = 2_000
    server.publish_raw(BUNDLE, owner.bundle(new), retain=True)
    server.publish_raw(WEIGHTS, owner.weights(new, 2), retain=True)
    device(trust={"key": str(owner.public)})
    server.receipt(server.update(server.task(new, version=2), PATIENCE_S))
    server.publish_raw(BUNDLE, old_payload, retain=True)
    assert "signed before what this device has" in answer(server, server.task(old)).error
    owner.now = 3_000  # its server has started again with the old one
    server.publish_raw(BUNDLE, owner.bundle(old), retain=True)
    server.publish_raw(WEIGHTS, owner.weights(old, 3), retain=True)
    assert server.update(server.task(old, version=3), PATIENCE_S).base == 3


def test_what_is_on_the_disk_is_checked_again_at_the_start(
    server: Server, device: Devices, bundles: Bundles, owner: Owner
) -> None:
    bundle = bundles("forecast")
    server.publish_raw(BUNDLE, owner.bundle(bundle), retain=True)
    server.publish_raw(WEIGHTS, owner.weights(bundle, 7), retain=True)
    one = device(trust={"key": str(owner.public)})
    server.receipt(server.update(server.task(bundle, version=7), PATIENCE_S))
    assert one.terminate() == 0
    stored = one.state_dir / "model" / "current.bundle"
    bundle.write(stored)
    again = device(trust={"key": str(owner.public)})
    server.wait_for(lambda: refused(server) >= 1, PATIENCE_S, "the stored bundle's refusal")
    assert "bundle: of model 'telemetry': isn't signed" in again.log()


def test_a_key_without_cryptography_is_an_error_that_names_what_to_install(owner: Owner, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "pi", "pi-1", 1, {"trust": {"key": str(owner.public)}})
    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        f"from edge_client.command import main; sys.exit(main(['--config', {str(settings)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip install 'pollen-fl[signing]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
