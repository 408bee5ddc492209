"""`pollen revoke` on a real Mosquitto with TLS, and against a real server."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from firmware_scripts.authority import blocking
from firmware_scripts.authority.authority import Authority
from pollen.command import main
from pollen.errors import PollenError
from pollen.http_service import HttpService
from pollen.http_settings import Http
from pollen.mosquitto import Account, Mosquitto, Tls
from tests.conftest import WaitUntil
from tests.pollen.mqtt_session import NOT_AUTHORISED, WAIT_S, Session, context_of
from tests.server.web.serving import TOKEN, Serving

FLEET = "garden"
MODEL = f"pollen/1/{FLEET}/m/weather/head"

Connect = Callable[..., Session]


def topic(device: str, leaf: str) -> str:
    return f"pollen/1/{FLEET}/d/{device}/{leaf}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "ca", FLEET)
    authority.issue("broker", "broker", hosts=["127.0.0.1"])
    authority.issue("server", "server", hosts=["127.0.0.1"])
    authority.issue("gateway-1", "gateway")
    for name in ("pi-01", "pi-02"):
        authority.issue(name, "device")
    return authority


@pytest.fixture
def broker(authority: Authority, mosquitto_binary: Path, tmp_path: Path) -> Iterator[Mosquitto]:
    """With a revocation list of its own, as on another machine."""
    crl = tmp_path / "brokers-crl.pem"
    shutil.copy(authority.crl, crl)
    issued = authority.folder / "issued"
    tls = Tls(ca=authority.ca, certificate=issued / "broker.pem", key=issued / "broker.key", crl=crl)
    accounts = [Account("gateway-1", "", "gateway")]
    with Mosquitto(mosquitto_binary, tmp_path / "broker", fleet=FLEET, accounts=accounts, tls=tls) as running:
        yield running


@pytest.fixture
def connect(authority: Authority, broker: Mosquitto, wait_until: WaitUntil) -> Iterator[Connect]:
    opened: list[Session] = []

    def connected(name: str) -> Session:
        opened.append(Session(broker.port, wait_until, tls=context_of(authority, name)))
        return opened[-1]

    yield connected
    for one in opened:
        one.close()


def revoke(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `pollen revoke …`."""
    capfd.readouterr()
    code = main(["revoke", *map(str, words)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_a_connected_device_loses_its_rights_at_once_and_cant_come_back(
    authority: Authority,
    broker: Mosquitto,
    connect: Connect,
    capfd: pytest.CaptureFixture[str],
    wait_until: WaitUntil,
) -> None:
    gateway, revoked, honest = connect("gateway-1"), connect("pi-01"), connect("pi-02")
    gateway.subscribe(topic("+", "update"))
    for device in (revoked, honest):
        device.subscribe(MODEL)
    assert revoked.publish(topic("pi-01", "update"), b"before") == 0
    wait_until(lambda: gateway.received.get(topic("pi-01", "update")) == b"before", WAIT_S, "the update of pi-01")
    process = broker.process.pid

    code, told, _ = revoke(capfd, "pi-01", "--ca", authority.folder, "--broker", broker.folder)
    assert code == 0
    assert sorted(told.splitlines()) == [
        f"authority  pi-01, a device, is revoked in {authority.crl}",
        f"broker     pi-01 is denied every topic and can't connect again; Mosquitto, process {process}, was told",
        "server     NOT ASKED: takes pi-01 for online, as its retained birth says, until it is blocked: --server",
    ]

    wait_until(  # the broker may take a moment for a signal
        lambda: revoked.publish(topic("pi-01", "update"), b"before") == NOT_AUTHORISED, WAIT_S, "its rights are gone"
    )
    assert revoked.publish(topic("pi-01", "update"), b"after") == NOT_AUTHORISED
    assert honest.publish(topic("pi-02", "update"), b"mine") == 0
    gateway.publish(MODEL, b"new")
    wait_until(lambda: honest.received.get(MODEL) == b"new", WAIT_S, "the honest device got the model")
    wait_until(lambda: topic("pi-02", "update") in gateway.received, WAIT_S, "and its update arrived")
    assert revoked.received == {}
    assert gateway.received[topic("pi-01", "update")] == b"before"
    assert honest.ended == gateway.ended == []

    revoked.close()
    assert "certificate verify failed" not in broker.log.read_text()
    with contextlib.suppress(OSError):  # TLS 1.3 may tell a client only after its own end of the handshake
        assert connect("pi-01").connected == []
    wait_until(lambda: "certificate verify failed" in broker.log.read_text(), WAIT_S, "its handshake fails")
    assert connect("pi-02").connected[0][0] == 0
    assert broker.running
    assert broker.process.pid == process

    code, again_told, _ = revoke(capfd, "pi-01", "--ca", authority.folder, "--broker", broker.folder)
    assert (code, again_told) == (0, told)
    rules = (broker.folder / "access-rules").read_text()
    assert rules.count("user pi-01\n") == 1


def test_a_name_that_was_revoked_is_readmitted_with_its_new_certificate_only(
    authority: Authority,
    broker: Mosquitto,
    connect: Connect,
    capfd: pytest.CaptureFixture[str],
    wait_until: WaitUntil,
) -> None:
    words: list[str | Path] = ["pi-01", "--ca", authority.folder, "--broker", broker.folder]
    rules = (broker.folder / "access-rules").read_bytes()
    stolen = context_of(authority, "pi-01")
    assert revoke(capfd, "pi-02", *words[1:])[0] == revoke(capfd, *words)[0] == 0
    code, told, error = revoke(capfd, *words, "--readmit")
    assert (code, told) == (1, "")
    assert error.startswith("error: 'pi-01' has no certificate that stands; make one first: pollen ca issue pi-01")
    authority.issue("pi-01", "device")
    code, told, _ = revoke(capfd, *words, "--readmit")
    assert code == 0
    assert told.splitlines()[2].startswith("broker     pi-01 may connect with its new certificate; Mosquitto, process ")
    assert (broker.folder / "access-rules").read_bytes() == rules + b"\nuser pi-02\ntopic deny #\n"
    wait_until(lambda: broker.log.read_text().count("Reloading config.") == 3, WAIT_S, "the broker reloads")
    assert connect("pi-01").publish(topic("pi-01", "update"), b"new") != NOT_AUTHORISED
    thief = Session(broker.port, wait_until, tls=stolen)
    assert thief.connected == []
    thief.close()


def test_another_authoritys_list_is_not_taken_to_the_broker(
    authority: Authority, broker: Mosquitto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Authority.create(tmp_path / "other", FLEET)
    other.issue("pi-01", "device")
    files = tmp_path / "brokers-crl.pem", broker.folder / "access-rules"
    before = [file.read_bytes() for file in files]
    code, _, error = revoke(capfd, "pi-01", "--ca", other.folder, "--broker", broker.folder)
    assert code == 1
    assert "ca.pem: this broker trusts another authority than" in error
    assert [file.read_bytes() for file in files] == before
    assert "Reloading" not in broker.log.read_text()


def test_a_broker_that_is_down_is_said_to_act_at_its_start(
    authority: Authority, broker: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    broker.kill()
    code, told, _ = revoke(capfd, "pi-01", "--ca", authority.folder, "--broker", broker.folder)
    assert code == 0
    assert told.splitlines()[2] == (
        "broker     pi-01 is denied every topic and can't connect again from Mosquitto's next start on: none runs here"
        " with this folder."
    )


def test_what_to_copy_is_said_where_the_broker_is_elsewhere(
    authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied, issued = tmp_path / "for-the-broker", authority.folder / "issued"
    words = ["--fleet", FLEET, "--ca", authority.ca, "--crl", authority.crl, "--at", "/etc/mosquitto/pollen"]
    words += ["--certificate", issued / "broker.pem", "--key", issued / "broker.key", "--gateway", "gateway-1"]
    assert main(["broker-config", *map(str, words), "-o", str(copied)]) == 0
    code, told, _ = revoke(capfd, "pi-01", "--ca", authority.folder, "--broker", copied)
    assert code == 0
    assert told.splitlines()[2:] == [
        f"broker     NOT YET: no Mosquitto runs here with this folder. Copy {copied}/access-rules and",
        f"           {copied}/crl.pem to the broker's machine, and run there: sudo systemctl reload mosquitto",
    ]
    assert (copied / "crl.pem").read_bytes() == authority.crl.read_bytes()
    assert "user pi-01\ntopic deny #" in (copied / "access-rules").read_text()


def test_a_gateway_is_revoked_with_a_word_about_the_server(
    authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = revoke(capfd, "gateway-1", "--ca", authority.folder)
    assert code == 0
    assert told.splitlines() == [
        f"authority  gateway-1, a gateway, is revoked in {authority.crl}",
        f"broker     NOT YET: give its folder with --broker; a cluster takes {authority.crl} in its own way",
        f"server     NOT YET: copy {authority.crl} to its listen.crl; it is read within a second",
    ]


def test_the_server_blocks_it_too_and_a_failure_is_no_end(
    authority: Authority,
    broker: Mosquitto,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    wait_until: WaitUntil,
) -> None:
    token, wrong = tmp_path / "token", tmp_path / "wrong-token"
    token.write_text(f"{TOKEN}\n")
    wrong.write_text("not the token, but as long")
    known: list[str | Path] = ["--ca", authority.folder, "--broker", broker.folder]
    (tmp_path / "server").mkdir()
    with Serving(tmp_path / "server") as serving:
        code, told, error = revoke(capfd, "pi-01", *known, "--server", serving.url, "--token-file", wrong)
        assert code == 1
        assert len(told.splitlines()) == 2
        assert error.startswith(f"error: server: pi-01 is NOT locked out there: {serving.url} refuses, with status 401")
        assert error.count("\n") == 1
        code, told, _ = revoke(capfd, "pi-01", *known, "--server", serving.url, "--token-file", token)
        assert code == 0
        assert told.splitlines()[2] == f"server     pi-01 is blocked at {serving.url}"
        assert serving.api("/api/fleet")["devices"]["blocked"] == 1
        code, told, _ = revoke(capfd, "pi-01", *known, "--server", serving.url, "--token-file", token)
        assert told.splitlines()[2] == f"server     pi-01 is blocked at {serving.url} (it was before)"
        authority.issue("pi-01", "device")
        code, told, _ = revoke(capfd, "pi-01", "--readmit", *known, "--server", serving.url, "--token-file", token)
        assert told.splitlines()[2] == f"server     pi-01 is not blocked at {serving.url}"
        # The server answers this from what it has put together within the last second.
        wait_until(lambda: serving.api("/api/fleet")["devices"]["blocked"] == 0, WAIT_S, "nobody is blocked")
    code, told, error = revoke(capfd, "pi-02", *known, "--server", serving.url, "--token-file", token)
    assert code == 1
    assert len(told.splitlines()) == 2
    assert error.startswith(f"error: server: pi-02 is NOT locked out there: {serving.url} can't be asked: ")
    assert TOKEN not in told + error + serving.log

    # The broker fails, the server is asked all the same.
    code, told, error = revoke(capfd, "pi-02", "--ca", authority.folder, "--broker", tmp_path, "--server", serving.url,
                               "--token-file", token)  # fmt: skip
    assert code == 1
    assert [line.split(":")[1] for line in error.splitlines()] == [" broker", " server"]


def test_the_token_goes_to_the_fleets_own_server_only(authority: Authority, tmp_path: Path) -> None:
    shown: list[str] = []

    async def take(request: Request) -> JSONResponse:
        shown.append(request.headers["authorization"])
        return JSONResponse({"name": "pi-01", "blocked": True, "changed": True})

    other = Authority.create(tmp_path / "other", FLEET)
    foreign = other.issue("server", "server", hosts=["127.0.0.1"])
    application = Starlette(routes=[Route("/api/devices/pi-01/block", take, methods=["POST"])])
    with HttpService(application, Http(certificate=foreign.certificate, key=foreign.key)) as service:
        url = f"https://127.0.0.1:{service.port}"
        with pytest.raises(PollenError, match=r"^https://127.0.0.1:\d+ can't be asked: .*CERTIFICATE_VERIFY_FAILED"):
            blocking.set_blocked(url, "pi-01", TOKEN, authority.ca, blocked=True)
        assert shown == []
        assert blocking.set_blocked(url, "pi-01", TOKEN, other.ca, blocked=True)
        assert shown == [f"Bearer {TOKEN}"]
        with pytest.raises(PollenError, match=r"refuses, with status 404: is that Pollen's server"):
            blocking.set_blocked(url, "pi-02", TOKEN, other.ca, blocked=True)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["pi-O1"], 1, "did you mean pi-01"),
        (["pi-01", "--server", "http://127.0.0.1:1"], 2, "--server and --token-file go together"),
        (["pi-01", "--server", "ftp://x", "--token-file", "{token}"], 1, "must be http://HOST:PORT or https://"),
        (["pi-01", "--server", "http://192.0.2.1:80", "--token-file", "{token}"], 1, "the token would pass readably"),
        (["pi-01", "--server", "http://127.0.0.1:1", "--token-file", "/nowhere"], 2, "/nowhere: can't be read"),
        (["pi-01", "--server", "http://127.0.0.1:1", "--token-file", os.devnull], 2, "holds no token"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(  # noqa: PLR0917  # fixtures and parameters
    authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    given = [word.format(token=tmp_path / "token") for word in words]
    found, _, error = revoke(capfd, *given, "--ca", authority.folder)
    assert found == code
    assert text in error
    assert error.count("\n") == 1


def test_help_has_examples(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        revoke(capfd, "--help")
    assert ended.value.code == 0
    assert "pollen revoke pi-01 --ca ca --broker" in capfd.readouterr().out
