"""Signed models: what a signature is worth, and the command that makes the keys."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen import command, signing
from pollen.bundle import Bundle
from pollen.errors import BundleError, SettingsError, SignatureError
from pollen.signing import ModelKey, SigningKey, Subject, signed_at
from tests.pollen.manifests import manifest

pytest.importorskip("cryptography")
NOW = 1_800_000_000.9
WEIGHTS = Subject("weights", "m", 7, b"d" * 32, b"b" * 32)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return signing.make_keys(tmp_path_factory.mktemp("keys"))


def signer(keys: tuple[Path, Path]) -> SigningKey:
    key = SigningKey.read(keys[0])
    key._clock = lambda: NOW
    return key


def test_the_owner_of_the_key_is_believed(keys: tuple[Path, Path]) -> None:
    signature = signer(keys).sign(WEIGHTS)
    assert len(signature) == signing.SIGNATURE_BYTES
    assert signed_at(signature) == int(NOW)
    ModelKey.read(keys[1]).check(signature, WEIGHTS)


OTHER: dict[str, Any] = {"kind": "infer", "model": "n", "version": 8, "digest": b"e" * 32, "bundle": b"c" * 32}


@pytest.mark.parametrize("field", [field.name for field in fields(Subject)])
def test_a_signature_is_worth_nothing_for_anything_else(keys: tuple[Path, Path], field: str) -> None:
    signature = signer(keys).sign(WEIGHTS)
    with pytest.raises(SignatureError, match=r"isn't signed by the owner of trust\.key"):
        ModelKey.read(keys[1]).check(signature, replace(WEIGHTS, **{field: OTHER[field]}))


def test_every_bit_of_a_signature_counts_the_time_too(keys: tuple[Path, Path]) -> None:
    signature, key = signer(keys).sign(WEIGHTS), ModelKey.read(keys[1])
    for at in range(len(signature)):
        changed = bytearray(signature)
        changed[at] ^= 1
        with pytest.raises(SignatureError):
            key.check(bytes(changed), WEIGHTS)


@pytest.mark.parametrize("signature", [None, b"", b"\0" * 71, b"\0" * 72, b"\xff" * 73])
def test_what_is_no_signature_is_refused(keys: tuple[Path, Path], signature: bytes | None) -> None:
    with pytest.raises(SignatureError, match=r"weights: version 7 of model 'm': isn't signed"):
        ModelKey.read(keys[1]).check(signature, WEIGHTS)


def test_another_fleets_key_is_not_believed(keys: tuple[Path, Path], tmp_path: Path) -> None:
    other, _ = signing.make_keys(tmp_path)
    with pytest.raises(SignatureError):
        ModelKey.read(keys[1]).check(SigningKey.read(other).sign(WEIGHTS), WEIGHTS)


def bundle() -> Bundle:
    empty = np.zeros(0, np.float32)
    return Bundle(manifest(), b"graph", np.ones(1, np.float32), empty, empty)


def test_a_bundle_keeps_its_digest_when_it_is_signed_and_its_signature_when_it_is_stored(tmp_path: Path) -> None:
    plain = bundle()
    signed = replace(plain, signature=b"s" * 72)
    assert signed.digest == plain.digest
    assert signed.to_bytes() != plain.to_bytes()
    signed.write(tmp_path / "m.bundle")
    again = Bundle.read(tmp_path / "m.bundle")
    assert (again.signature, again.digest) == (b"s" * 72, plain.digest)
    assert replace(again, signature=None).to_bytes() == plain.to_bytes()


def test_a_bundle_with_a_signature_of_another_length_is_refused() -> None:
    with pytest.raises(BundleError, match="its signature has 71 bytes instead of 72"):
        Bundle.from_bytes(replace(bundle(), signature=b"s" * 71).to_bytes(), "here")


def test_the_command_makes_keys_once_and_keeps_the_private_one_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.SUMMARIES["sign-key"]
    assert run("sign-key", str(tmp_path / "keys")) == 0
    private, public = tmp_path / "keys" / "model-key.pem", tmp_path / "keys" / "model-key.pub.pem"
    assert str(private) in capsys.readouterr().out
    assert (private.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    ModelKey.read(public).check(SigningKey.read(private).sign(WEIGHTS), WEIGHTS)
    before = private.read_bytes()
    with pytest.raises(SettingsError, match="is there already"):
        run("sign-key", str(tmp_path / "keys"))
    assert private.read_bytes() == before


def run(*words: str) -> int:
    from pollen import signing_command

    assert words[0] == "sign-key"
    return signing_command.main(list(words[1:]))


def test_a_file_that_is_no_key_is_refused_with_its_name(keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    for content in (b"", b"nonsense", keys[1].read_bytes(), b"\xff" * 10**5):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"k\.pem: is no private key"):
            SigningKey.read(path)
    path.write_bytes(keys[0].read_bytes())
    with pytest.raises(SettingsError, match=r"k\.pem: is no public key"):
        ModelKey.read(path)
    with pytest.raises(SettingsError, match=r"gone: can't be read"):
        ModelKey.read(tmp_path / "gone")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import x25519

    key = x25519.X25519PrivateKey.generate()
    path = tmp_path / "k.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(SettingsError, match="is no Ed25519 key"):
        SigningKey.read(path)


def test_without_cryptography_a_key_names_what_to_install(keys: tuple[Path, Path]) -> None:
    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path; from pollen.signing import ModelKey\n"
        f"ModelKey.read(Path({str(keys[1])!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "SettingsError" in done.stderr
    assert "pip install 'pollen-fl[signing]'" in done.stderr
