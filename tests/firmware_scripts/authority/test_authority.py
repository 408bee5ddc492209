"""The fleet's authority: what OpenSSL thinks of its documents, its books, and several processes at once."""

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from firmware_scripts.authority.authority import Authority
from firmware_scripts.authority.certificates import Role
from pollen.errors import PollenError, SettingsError

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "garden")


def openssl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def revoked(authority: Authority) -> set[int]:
    return {entry.serial_number for entry in x509.load_pem_x509_crl(authority.crl.read_bytes())}


@pytest.mark.parametrize(
    ("role", "hosts", "purpose", "other"),
    [
        ("device", [], "sslclient", "sslserver"),
        ("gateway", [], "sslclient", "sslserver"),
        ("observer", [], "sslclient", "sslserver"),
        ("server", ["server.example", "192.0.2.7"], "sslserver", "sslclient"),
        ("broker", ["broker.example", "::1"], "sslserver", "sslclient"),
    ],
)
def test_openssl_takes_a_certificate_for_its_purpose_only(
    authority: Authority, role: Role, hosts: Sequence[str], purpose: str, other: str
) -> None:
    issued = authority.issue("a-name", role, hosts=hosts)
    checks = ["verify", "-x509_strict", "-check_ss_sig", "-crl_check", "-CRLfile", authority.crl]
    checks += ["-CAfile", authority.ca]
    right = openssl(*checks, "-purpose", purpose, issued.certificate)
    assert right.returncode == 0, right.stderr
    assert openssl(*checks, "-purpose", other, issued.certificate).returncode != 0
    authority.revoke("a-name")
    assert "certificate revoked" in openssl(*checks, "-purpose", purpose, issued.certificate).stderr


def test_a_certificate_says_who_it_is_for_and_nothing_else(authority: Authority) -> None:
    issued = authority.issue("server-1", "server", hosts=["server.example", "192.0.2.7"], days=30)
    certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    key = certificate.public_key()
    assert certificate.subject.rfc4514_string() == "CN=server-1"
    assert [str(name.value) for name in names] == ["urn:pollen:role:server", "server.example", "192.0.2.7"]
    assert list(use) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert certificate.serial_number == issued.serial
    assert abs(issued.not_after - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=10)
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)


def test_serial_numbers_are_random_and_long(authority: Authority) -> None:
    serials = [authority.issue(f"pi-{number}", "device").serial for number in range(20)]
    assert len(set(serials)) == 20
    assert max(serials).bit_length() > 140
    assert all(0 < serial < 2**159 for serial in serials)


def test_nothing_is_valid_longer_than_the_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "garden", days=10)
    assert authority.issue("pi-01", "device", days=400).not_after == authority.until
    assert authority.crl_until() == authority.until
    authority.renew_crl(3)
    assert abs(authority.crl_until() - datetime.now(UTC) - timedelta(days=3)) < timedelta(minutes=10)


def test_keys_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority = Authority.create(tmp_path / "ca", "garden")
        issued = authority.issue("pi-01", "device")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (authority.folder, *authority.folder.rglob("*"))}
    assert modes[authority.folder] == modes[authority.folder / "issued"] == 0o700
    assert modes[authority.folder / "ca.key"] == modes[issued.key] == 0o600


def test_a_name_keeps_its_role_and_has_one_certificate(authority: Authority) -> None:
    first = authority.issue("pi-01", "device")
    with pytest.raises(
        PollenError, match=r"^'pi-01' has a certificate, valid until .*; --replace revokes it and makes"
    ):
        authority.issue("pi-01", "device")
    for role in ("gateway", "observer"):
        with pytest.raises(PollenError, match=r"^'pi-01' is the name of a device and stays that"):
            authority.issue("pi-01", role, replace=True)
    assert revoked(authority) == set()

    second = authority.issue("pi-01", "device", replace=True)
    assert revoked(authority) == {first.serial}
    authority.revoke("pi-01")
    assert revoked(authority) == {first.serial, second.serial}
    with pytest.raises(PollenError, match=r"is the name of a device"):
        authority.issue("pi-01", "gateway")
    third = authority.issue("pi-01", "device")
    assert revoked(authority) == {first.serial, second.serial}
    assert [entry.serial for entry in authority.entries("pi-01")] == [first.serial, second.serial, third.serial]


def test_revoking_twice_changes_nothing_and_a_lost_list_comes_back(authority: Authority) -> None:
    issued = authority.issue("pi-01", "device")
    authority.revoke("pi-01")
    when = authority.entries("pi-01")[0].revoked_at
    authority.crl.unlink()
    authority.revoke("pi-01")
    assert revoked(authority) == {issued.serial}
    assert authority.entries("pi-01")[0].revoked_at == when


@pytest.mark.parametrize("left", ["a list without it", "none", "junk"])
def test_a_list_that_a_kill_left_behind_is_written_by_the_next_command(authority: Authority, left: str) -> None:
    first = authority.issue("pi-01", "device")
    before = authority.crl.read_bytes()
    authority.issue("pi-01", "device", replace=True)
    if left == "none":
        authority.crl.unlink()
    else:
        authority.crl.write_bytes(before if left == "a list without it" else b"junk")
    assert len(authority.entries()) == 2
    assert revoked(authority) == {first.serial}
    number, made = authority.crl_made()
    assert number == 3
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=10)
    authority.entries()
    assert authority.crl_made()[0] == 3, "once"


def test_a_folder_that_cant_be_written_is_told_in_one_line(authority: Authority) -> None:
    (authority.folder / "issued").rmdir()
    (authority.folder / "issued").write_bytes(b"")
    with pytest.raises(PollenError, match=r"/ca: can't be written \(.*\); then do it again"):
        authority.issue("pi-01", "device")


def test_revoking_a_name_that_was_never_issued_names_those_like_it(authority: Authority) -> None:
    for name in ("pi-01", "pi-02", "gateway-1"):
        authority.issue(name, "gateway" if name.startswith("g") else "device")
    with pytest.raises(PollenError, match=r"never issued a certificate for 'pi-O1'; did you mean pi-01"):
        authority.revoke("pi-O1")
    with pytest.raises(PollenError, match=r"never issued a certificate for 'x'; `pollen ca list` shows"):
        authority.revoke("x")


@pytest.mark.parametrize("name", ["", "../pi", "pi 1", "pi+1", "#", "$SYS", "a" * 65, "pi/1", ".pi", "pi\n"])
def test_a_name_that_is_no_topic_level_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(SettingsError, match=r"^name: .* is not a legal name"):
        authority.issue(name, "device")
    assert list((authority.folder / "issued").iterdir()) == []


@pytest.mark.parametrize(
    ("role", "hosts", "days", "text"),
    [
        ("server", [], 365, "host: the role server needs at least one host, as clients know it by that"),
        ("device", ["pi.example"], 365, "host: the role device has no hosts"),
        ("broker", ["a b"], 365, "host: 'a b' is neither an IP address nor a DNS name"),
        ("broker", ["*.example"], 365, "host: '*.example' is neither an IP address nor a DNS name"),
        ("broker", ["1.2.3.4:8883"], 365, "host: '1.2.3.4:8883' is neither an IP address nor a DNS name"),
        ("device", [], 0, "days = 0 must be from 1 to 36500"),
        ("king", [], 365, "role: 'king' must be one of device, gateway, server, broker, observer"),
    ],
)
def test_what_cant_be_issued_is_said_in_one_line(
    authority: Authority, role: Role, hosts: Sequence[str], days: int, text: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        authority.issue("a-name", role, hosts=hosts, days=days)
    assert str(refused.value) == text
    assert authority.entries() == []


def test_a_folder_that_holds_something_is_left_alone(authority: Authority, tmp_path: Path) -> None:
    before = (authority.folder / "ca.key").read_bytes()
    with pytest.raises(SettingsError, match=r": is there already; give a new folder$"):
        Authority.create(authority.folder, "garden")
    assert (authority.folder / "ca.key").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_a_folder_that_is_no_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ca\.pem: can't be read \(No such file or directory\)"):
        Authority.open(tmp_path)
    other = Authority.create(tmp_path / "other", "garden")
    (authority.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(SettingsError, match=r"ca\.key is not the key of ca\.pem; restore"):
        Authority.open(authority.folder)
    (other.folder / "ca.key").write_bytes(b"nonsense")
    with pytest.raises(SettingsError, match=r"ca\.pem or ca\.key is damaged"):
        Authority.open(other.folder)


def test_damaged_books_are_named(authority: Authority) -> None:
    (authority.folder / "registry.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(PollenError, match=r"registry\.sqlite: can't be used: file is not a database"):
        authority.issue("pi-01", "device")
    (authority.folder / "registry.sqlite").unlink()
    with pytest.raises(PollenError, match=r"registry\.sqlite: is missing; restore"):
        authority.issue("pi-01", "device")
    assert list((authority.folder / "issued").iterdir()) == []


def test_several_processes_share_an_authority(authority: Authority) -> None:
    program = (
        "import sys; from pathlib import Path; from firmware_scripts.authority.authority import Authority\n"
        "from pollen.errors import PollenError\n"
        "authority = Authority.open(Path(sys.argv[1]))\n"
        "for number in range(8):\n"
        "    authority.issue(f'pi-{sys.argv[2]}-{number}', 'device')\n"
        "    authority.issue('everyones', 'device', replace=True)\n"
        "    authority.revoke(f'pi-{sys.argv[2]}-{number}')\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(authority.folder), str(number)],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in running:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
        assert process.stderr is not None
        process.stderr.close()
    entries = authority.entries()
    assert len(entries) == 48
    standing = [entry for entry in entries if entry.revoked_at is None]
    assert [entry.name for entry in standing] == ["everyones"]
    assert revoked(authority) == {entry.serial for entry in entries} - {standing[0].serial}
    certificate = x509.load_pem_x509_certificate((authority.folder / "issued" / "everyones.pem").read_bytes())
    assert certificate.serial_number == standing[0].serial
    number = x509.load_pem_x509_crl(authority.crl.read_bytes()).extensions.get_extension_for_class(x509.CRLNumber)
    assert number.value.crl_number == 1 + 24 + 24
