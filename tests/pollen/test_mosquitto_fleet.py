"""`pollen broker-config`: what it writes runs unchanged on a real Mosquitto, and wrong input is told in one line."""

import datetime
import os
import pwd
import re
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmware_scripts.authority.authority import Authority
from pollen import command
from pollen.mosquitto.limits import Limits
from pollen.mosquitto.revocation import revoke
from tests.pollen.broker_folder import HOST, free_port, options_of
from tests.pollen.expired_list import write_expired_list
from tests.pollen.mqtt_session import NOT_AUTHORISED, WAIT_S, Session, context_of


@pytest.fixture
def session(authority, wait_until):
    opened = []

    def connect(port, name, **options):
        opened.append(Session(port, wait_until, tls=context_of(authority, name), **options))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def test_what_it_writes_runs_unchanged_and_enforces_the_limits(arguments, run, session, tmp_path, wait_until):
    port = free_port()
    (tmp_path / "state").mkdir()
    assert command.main(arguments(listen=f"{HOST}:{port}", devices=100, message_bytes=1_000_000)) == 0
    process = run(tmp_path / "broker" / "mosquitto.conf")
    device, gateway = session(port, "device-1", keepalive_s=3600), session(port, "gateway-1")
    properties = device.connected[0][1]
    assert properties.ReceiveMaximum == 1000
    assert properties.MaximumPacketSize == 1_000_000 + 64 * 1024
    assert properties.MaximumQoS == 1
    assert properties.ServerKeepAlive == 300
    assert device.publish("pollen/1/f/d/device-1/update", bytes(1_000_000)) != NOT_AUTHORISED
    assert gateway.publish("pollen/1/f/d/device-1/update") == NOT_AUTHORISED
    assert int((tmp_path / "state" / "mosquitto.pid").read_text(encoding="ascii")) == process.pid
    device.client.publish("pollen/1/f/d/device-1/update", bytes(1_000_000 + 64 * 1024), 1)
    wait_until(lambda: device.ended, WAIT_S, "a larger packet costs the connection")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start Mosquitto as it and as another user")
@pytest.mark.parametrize("starter", ["root", "mosquitto"])
def test_it_runs_as_debians_service_user(starter, arguments, run, session, wait_until):
    try:
        account = pwd.getpwnam("mosquitto")
    except KeyError:
        pytest.skip("there is no user mosquitto; install Debian's package mosquitto")
    port = free_port()
    # pytest's folders are root's alone.
    public = Path(tempfile.mkdtemp(prefix="pollen-broker-"))
    try:
        public.chmod(0o755)
        state = public / "state"
        state.mkdir()
        os.chown(state, account.pw_uid, account.pw_gid)
        output = public / "conf"
        assert command.main(arguments(output, listen=f"{HOST}:{port}", state=state, user="mosquitto")) == 0
        assert stat.S_IMODE((output / "broker.key").stat().st_mode) == 0o640
        assert (output / "broker.key").stat().st_gid == account.pw_gid
        process = run(output / "mosquitto.conf", None if starter == "root" else "mosquitto")
        assert session(port, "device-1").publish("pollen/1/f/d/device-1/state") != NOT_AUTHORISED
        assert Path(f"/proc/{process.pid}").stat().st_uid == account.pw_uid
        revoke(output, "device-1", None)
        late = session(port, "device-1")
        wait_until(
            lambda: late.publish("pollen/1/f/d/device-1/state") == NOT_AUTHORISED,
            WAIT_S,
            "it can read what root has written, after it has become another user",
        )
        assert (output / "access-rules").stat().st_gid == account.pw_gid
        process.terminate()
        process.wait(WAIT_S)
        assert (state / "mosquitto.db").exists()
    finally:
        shutil.rmtree(public)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to write files of another user")
def test_root_leaves_the_files_to_whom_they_were_given(arguments, tmp_path, authority):
    output = tmp_path / "broker"
    assert command.main(arguments(user="nobody-here")) == 0
    for path in (output, *output.iterdir()):
        os.chown(path, 10001, 10002)
    (output / "access-rules").chmod(0o640)
    (output / "crl.pem").write_bytes(b"older")
    assert revoke(output, "device-1", authority.crl).crl is not None
    assert command.main(arguments(user="nobody-here", devices=5)) == 0
    for path in (output, *output.iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10002), path
    assert stat.S_IMODE((output / "access-rules").stat().st_mode) == 0o640
    assert stat.S_IMODE((output / "broker.key").stat().st_mode) == 0o600
    assert {path.name for path in output.iterdir()} == {
        "access-rules",
        "broker.key",
        "broker.pem",
        "ca.pem",
        "crl.pem",
        "mosquitto.conf",
    }


def test_it_says_what_it_wrote_and_what_to_do_next(arguments, capsys):
    assert command.main(arguments(devices=100, at="/etc/mosquitto/pollen")) == 0
    told = capsys.readouterr().out
    for part in (
        "for the fleet f",
        "broker.example",
        "at most 128 connections",
        "/etc/mosquitto/pollen/mosquitto.conf /etc/mosquitto/mosquitto.conf",
        "chown -R root:",
        "systemctl restart mosquitto",
        "pollen revoke",
    ):
        assert part.lower() in told.lower(), part
    assert re.search(r'^  group = "[0-9a-f]{32}"$', told, re.MULTILINE)
    with pytest.raises(SystemExit, match="0"):
        command.main(["broker-config", "--help"])
    assert "examples:" in capsys.readouterr().out


def test_mosquitto_2_1_gets_its_plugin_where_that_is_named_and_acl_file_otherwise(arguments, tmp_path):
    # 2.1 can't be run here: Debian 12 has 2.0.11.
    output = tmp_path / "broker"
    assert command.main(arguments(mosquitto="2.1", acl_plugin="/usr/lib/mosquitto_acl_file.so")) == 0
    options = options_of(output / "mosquitto.conf")
    assert options["plugin"] == "/usr/lib/mosquitto_acl_file.so"
    assert options["plugin_opt_acl_file"] == str(output / "access-rules")
    assert "acl_file" not in options
    assert revoke(output, "device-1", None).changed
    assert command.main(arguments(mosquitto="2.1")) == 0
    assert "acl_file" in options_of(output / "mosquitto.conf")
    for text in ("per_listener_settings", "password_file"):
        assert text not in (output / "mosquitto.conf").read_text(encoding="utf-8")


def test_the_files_are_private_and_the_key_is_shown_nowhere(arguments, tmp_path, capsys):
    assert command.main(arguments()) == 0
    output = tmp_path / "broker"
    assert stat.S_IMODE(output.stat().st_mode) & 0o007 == 0
    for path in output.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o037 == 0, path
    secret = (output / "broker.key").read_text(encoding="ascii").splitlines()[1]
    told = capsys.readouterr()
    assert secret not in told.out + told.err
    assert secret not in (output / "mosquitto.conf").read_text(encoding="utf-8")


def expired_certificate(authority):
    """(key, certificate) of a broker, made by hand as the authority wouldn't."""
    own = serialization.load_pem_private_key((authority.folder / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1234)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("b.example")]), critical=False)
        .sign(own, hashes.SHA256())
    )
    return key, certificate


@pytest.fixture
def bad(authority, tmp_path):
    """A folder of files that nobody should use."""
    folder = tmp_path / "bad"
    folder.mkdir()
    key, certificate = expired_certificate(authority)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "expired.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "expired.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    (folder / "locked.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"word")))
    (folder / "junk.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    write_expired_list(authority, folder / "expired-crl.pem")
    return folder


def test_files_that_would_not_serve_are_told_in_one_line(arguments, authority, bad, tmp_path, capsys):
    other = Authority.create(tmp_path / "other", "f")
    issued = authority.folder / "issued"
    cases = [
        ({"certificate": bad / "expired.pem", "key": bad / "expired.key"}, r"expired\.pem: has expired .*--replace"),
        ({"key": issued / "server.key"}, r"server\.key: is not the key of .*broker\.pem"),
        (
            {"crl": bad / "expired-crl.pem"},
            r"expired-crl\.pem: has expired, and Mosquitto would refuse every client .*pollen ca crl",
        ),
        ({"crl": authority.ca}, r"ca\.pem: is no revocation list"),
        ({"crl": other.crl}, r"crl\.pem: is not by this CA .*give the crl\.pem"),
        ({"ca": other.ca, "crl": other.crl}, r"broker\.pem: is not by this CA"),
        (
            {"certificate": issued / "device-1.pem", "key": issued / "device-1.key"},
            r"device-1\.pem: is not for a broker",
        ),
        ({"ca": tmp_path / "absent.pem"}, r"absent\.pem: can't be read \(No such file"),
        ({"certificate": bad / "junk.pem"}, r"junk\.pem and .*: are no certificate"),
        ({"ca": bad / "junk.pem"}, r"junk\.pem: is no CA certificate"),
        ({"key": bad / "locked.key"}, r"locked\.key: are no certificate and unencrypted key"),
        ({"fleet": "a/b"}, "fleet: 'a/b' is not a legal name"),
        ({"gateway": None}, "--gateway: name at least one"),
        ({"observer": "gateway-1"}, "'gateway-1' is there twice"),
        ({"listen": "8883"}, "--listen: '8883' must be HOST:PORT"),
        ({"listen": "a b:8883"}, "must be HOST:PORT"),
        ({"devices": 0}, "--devices: 0 must be from 1"),
        ({"update_bytes": 10**9}, "--update-bytes: 1000000000 must be from 1 to 16777216"),
        ({"at": "relative"}, "--at: 'relative' must be an absolute path"),
        ({"user": "a\nlistener 1883"}, "is no user's name"),
    ]
    for changes, expected in cases:
        assert command.main(arguments(**changes)) == 2, changes
        told = capsys.readouterr()
        assert re.search(expected, told.err), told.err
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1, told.err
        assert not (tmp_path / "broker").exists(), "nothing is written before everything is right"


def test_limits_follow_the_size_of_the_fleet():
    small, large = (
        Limits.for_fleet(devices, 2, message_bytes=16 * 1024**2, update_bytes=100_000) for devices in (10, 10_000)
    )
    assert (small.connections, large.connections) == (29, 11_018)
    assert (small.queued_messages, large.queued_messages) == (1000, 40_000)
    assert (small.queued_bytes, large.queued_bytes) == (64 * 1024**2, 2_000_000_000)


def test_a_full_queue_drops_what_exceeds_it_and_nothing_else(arguments, run, session, tmp_path, wait_until):
    port = free_port()
    (tmp_path / "state").mkdir()
    assert command.main(arguments(listen=f"{HOST}:{port}", devices=1)) == 0
    configuration = tmp_path / "broker" / "mosquitto.conf"
    most = int(options_of(configuration)["max_queued_messages"])
    run(tmp_path / "broker" / "mosquitto.conf")
    away = session(port, "gateway-1", expiry_s=600)
    away.subscribe("$share/gateways/pollen/1/f/d/+/update")
    away.client.loop_stop()
    away.client.socket().close()
    # Only then does the broker queue for it.
    wait_until(lambda: b"Client gateway-1 closed" in (tmp_path / "errors-0").read_bytes(), WAIT_S, "it is gone")
    device = session(port, "device-1")
    # Acknowledged as if it were kept: only the receipt, end to end, says that it was.
    assert device.publish_all("pollen/1/f/d/device-1/update", [b"x"] * (most + 200)) == {0}
    back = session(port, "gateway-1", expiry_s=600)
    wait_until(lambda: back.messages >= most, WAIT_S, "what was queued comes")
    device.publish("pollen/1/f/d/device-1/update", b"end")
    wait_until(lambda: back.received.get("pollen/1/f/d/device-1/update") == b"end", WAIT_S, "the end")
    assert back.messages == most + 1
