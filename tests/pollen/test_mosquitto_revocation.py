"""Revocations in the folder of `pollen broker-config`: who is told, and that none is ever lost."""

import contextlib
import os
import shutil
import signal
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pollen import command
from pollen.errors import PollenError, SettingsError
from pollen.mosquitto import access
from pollen.mosquitto.revocation import revoke
from tests.pollen.broker_folder import HOST, free_port, options_of
from tests.pollen.mqtt_session import WAIT_S


def test_who_was_revoked_stays_so_when_it_is_run_again(arguments, tmp_path, capsys):
    output = tmp_path / "broker"
    assert command.main(arguments()) == 0
    revoke(output, "device-1", None)
    revoke(output, "gateway-1", None)
    assert command.main(arguments(gateway="gateway-2", devices=5000)) == 0
    assert access.revoked(output / "access-rules") == ["device-1", "gateway-1"]
    rules = (output / "access-rules").read_text(encoding="utf-8")
    assert "user gateway-2" in rules
    assert options_of(output / "mosquitto.conf")["max_connections"] == "5518"
    again = (output / "access-rules").read_bytes()
    assert command.main(arguments(gateway="gateway-2", devices=5000)) == 0
    assert (output / "access-rules").read_bytes() == again


def test_of_many_revocations_at_once_none_is_lost(arguments, tmp_path):
    assert command.main(arguments(at="/etc/mosquitto/pollen")) == 0
    output, names = tmp_path / "broker", [f"device-{number:02}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(revoke, output, name, None) for name in names]
        again = pool.submit(command.main, arguments(at="/etc/mosquitto/pollen", devices=7))
        assert all(one.result(WAIT_S).changed for one in done)
        assert again.result(WAIT_S) == 0
    assert sorted(access.revoked(output / "access-rules")) == names


def test_rules_that_were_edited_keep_who_is_revoked(arguments, tmp_path):
    assert command.main(arguments()) == 0
    rules = tmp_path / "broker" / "access-rules"
    rules.write_bytes(
        rules.read_bytes() + b"# caf\xe9\r\nuser device-1 \r\ntopic deny #\r\nuser device-2\ntopic deny #"
    )
    assert access.revoked(rules) == ["device-1", "device-2"]
    assert not revoke(tmp_path / "broker", "device-2", None).changed
    assert command.main(arguments()) == 0
    assert access.revoked(rules) == ["device-1", "device-2"]


def test_a_revocation_takes_the_list_to_a_copy_of_the_folder_and_says_what_to_do(arguments, authority, tmp_path):
    assert command.main(arguments(at="/etc/mosquitto/pollen")) == 0
    output = tmp_path / "broker"
    options = options_of(output / "mosquitto.conf")
    assert options["crlfile"] == "/etc/mosquitto/pollen/crl.pem"
    assert options["acl_file"] == "/etc/mosquitto/pollen/access-rules"
    (output / "crl.pem").write_bytes(b"older")
    done = revoke(output, "device-1", authority.crl)
    assert (done.crl, done.pid) == (output / "crl.pem", None)
    assert (output / "crl.pem").read_bytes() == authority.crl.read_bytes()
    assert revoke(output, "device-1", authority.crl).crl is None


def test_no_other_process_is_signalled(arguments, tmp_path):
    (tmp_path / "state").mkdir()
    assert command.main(arguments()) == 0
    caught = []
    before = signal.signal(signal.SIGHUP, lambda *_: caught.append(1))
    try:
        for content in (str(os.getpid()), "1", "no number", str(2**22 + 1)):
            (tmp_path / "state" / "mosquitto.pid").write_text(content, encoding="ascii")
            assert revoke(tmp_path / "broker", "device-1", None).pid is None
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caught == []


def test_another_broker_that_has_the_old_ones_number_is_not_taken_for_it(arguments, run, tmp_path):
    port = free_port()
    for name in ("state", "other-state"):
        (tmp_path / name).mkdir()
    assert command.main(arguments()) == 0
    other = tmp_path / "other"
    assert command.main(arguments(other, listen=f"{HOST}:{port}", state=tmp_path / "other-state")) == 0
    process = run(other / "mosquitto.conf")
    (tmp_path / "state" / "mosquitto.pid").write_text(str(process.pid), encoding="ascii")
    assert revoke(tmp_path / "broker", "device-1", None).pid is None
    # As Debian's unit does: by a link.
    link = tmp_path / "link.conf"
    link.symlink_to(other / "mosquitto.conf")
    process.terminate()
    process.wait(WAIT_S)
    assert revoke(other, "device-1", None).pid is None
    process = run(link)
    assert revoke(other, "device-1", None).pid == process.pid


@contextlib.contextmanager
def somebody_else():
    """The block runs as the user nobody."""
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as another user")
def test_a_broker_that_may_not_be_signalled_is_told_as_such(arguments, run):
    public = Path(tempfile.mkdtemp(prefix="pollen-broker-"))
    try:
        public.chmod(0o755)
        (public / "state").mkdir()
        port = free_port()
        given = arguments(public / "conf", listen=f"{HOST}:{port}", state=public / "state")
        assert command.main(given) == 0
        run(public / "conf" / "mosquitto.conf")
        for path in (public / "conf", *(public / "conf").iterdir()):
            os.chown(path, 65534, 65534)
        with (
            somebody_else(),
            pytest.raises(PollenError, match=r"all is written, but .* can't be told by this user"),
        ):
            revoke(public / "conf", "device-1", None)
        assert access.revoked(public / "conf" / "access-rules") == ["device-1"]
    finally:
        shutil.rmtree(public)


def test_a_list_that_was_gone_comes_back_for_the_brokers_group_to_read(arguments, authority, tmp_path):
    assert command.main(arguments()) == 0
    (tmp_path / "broker" / "crl.pem").unlink()
    done = revoke(tmp_path / "broker", "device-1", authority.crl)
    assert stat.S_IMODE(done.crl.stat().st_mode) == 0o640


def test_a_folder_that_is_no_brokers_is_told(tmp_path):
    with pytest.raises(SettingsError, match=r"mosquitto\.conf.*pollen broker-config"):
        revoke(tmp_path, "device-1", None)
