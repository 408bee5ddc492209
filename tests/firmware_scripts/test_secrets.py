"""Passwords, tokens and keys appear in nothing that the services say, at the most talkative level."""

import http.client
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_scripts.authority.authority import Authority
from pollen.command import main
from pollen.mosquitto import Account, Mosquitto, Tls
from tests.conftest import WaitUntil
from tests.server.gateway_client import bundle
from tests.server.web.serving import free_port

PROJECT = Path(__file__).parents[2]
PASSWORD, SERVER_TOKEN, GATEWAY_TOKEN = "pass-7f3a9c", "server-token-5b1d7e2a", "gateway-token-9c4e1f6b"
GROUP = "group-2e8d4a"
WAIT_S = 60.0
SERVER = """fleet = "garden"
bundle = "small.bundle"
state_dir = "state"
[listen]
port = {port}
ca = "ca/ca.pem"
certificate = "ca/issued/server.pem"
key = "ca/issued/server.key"
crl = "ca/crl.pem"
[http]
port = {http}
certificate = "ca/issued/server.pem"
key = "ca/issued/server.key"
token = "{server_token}"
[logging]
level = "debug"
"""
GATEWAY = """fleet = "garden"
name = "gateway-1"
group = "{group}"
[broker]
port = {broker}
username = "gateway-1"
password = "{password}"
ca = "ca/ca.pem"
certificate = "ca/issued/gateway-1.pem"
key = "ca/issued/gateway-1.key"
[server]
port = {port}
ca = "ca/ca.pem"
certificate = "ca/issued/gateway-1.pem"
key = "ca/issued/gateway-1.key"
[http]
port = {gateway_http}
token = "{gateway_token}"
[logging]
level = "debug"
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "ca", "garden")
    for role in ("broker", "server"):
        authority.issue(role, role, hosts=["127.0.0.1"])
    authority.issue("gateway-1", "gateway")
    return authority


@pytest.fixture
def secrets(authority: Authority) -> list[str]:
    """What must not be found: of each key every line."""
    keys = [line for key in authority.folder.rglob("*.key") for line in key.read_text().splitlines()]
    return [PASSWORD, GROUP, SERVER_TOKEN, GATEWAY_TOKEN, *(line for line in keys if not line.startswith("-----"))]


def found(secrets: list[str], text: str) -> list[str]:
    return [secret for secret in secrets if secret in text]


def run(folder: Path, module: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A service that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


@pytest.fixture
def broker(authority: Authority, mosquitto_binary: Path, tmp_path: Path) -> Iterator[Mosquitto]:
    issued = authority.folder / "issued"
    tls = Tls(ca=authority.ca, certificate=issued / "broker.pem", key=issued / "broker.key", crl=authority.crl)
    accounts = [Account("gateway-1", "", "gateway")]
    with Mosquitto(mosquitto_binary, tmp_path / "broker", fleet="garden", accounts=accounts, tls=tls) as running:
        yield running


def test_a_run_at_debug_level_shows_no_secret(
    authority: Authority, broker: Mosquitto, secrets: list[str], tmp_path: Path, wait_until: WaitUntil
) -> None:
    ports = {"port": free_port(), "http": free_port(), "gateway_http": free_port(), "broker": broker.port}
    words = {"password": PASSWORD, "group": GROUP, "server_token": SERVER_TOKEN, "gateway_token": GATEWAY_TOKEN}
    (tmp_path / "server.toml").write_text(SERVER.format(**ports, **words))
    (tmp_path / "gateway.toml").write_text(GATEWAY.format(**ports, **words))
    bundle().write(tmp_path / "small.bundle")
    logs = {module: tmp_path / f"{module}.log" for module in ("server.command", "gateway.command")}
    everything = ""
    for module in logs:
        shown = run(tmp_path, module, "--config", f"{module.partition('.')[0]}.toml", "--show-config")
        assert shown.returncode == 0, shown.stderr
        assert 'token = "********"' in shown.stdout
        everything += shown.stdout + shown.stderr

    running = []
    try:
        for module, log in logs.items():
            command = [sys.executable, "-m", module, "--config", f"{module.partition('.')[0]}.toml"]
            with log.open("wb") as output:
                environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
                running.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output))
        wait_until(lambda: "is ready" in logs["gateway.command"].read_text(), WAIT_S, "the gateway is ready")
        for address, token in (
            ((ports["http"], authority.ca), SERVER_TOKEN),
            ((ports["gateway_http"], None), GATEWAY_TOKEN),
        ):
            for path in ("/healthz", "/readyz", "/metrics", "/api/fleet", "/nothing"):
                everything += _ask(address, "GET", path, "", wait_until)
            for shown_token in (token, "wrong"):
                everything += _ask(address, "POST", "/api/devices/pi-01/block", shown_token, wait_until)
        assert '"changed":true' in everything.replace(" ", "")
        # A gateway that is turned away, with what the server and it say about that.
        authority.revoke("gateway-1")
        wait_until(lambda: "is revoked" in logs["gateway.command"].read_text(), WAIT_S, "the gateway is refused")
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(WAIT_S) for process in running]
    everything += "".join(log.read_text() for log in logs.values()) + broker.log.read_text()
    assert codes[0] == 0, everything
    assert "DEBUG" in everything.upper()
    assert "pollen_server_" in everything
    assert found(secrets, everything) == []


def _ask(address: tuple[int, Path | None], method: str, path: str, token: str, wait_until: WaitUntil) -> str:
    """Headers and body of the answer; `address`: a port, and of TLS the authority."""
    port, ca = address

    def answered() -> str | None:
        connection: http.client.HTTPConnection
        if ca is not None:
            context = ssl.create_default_context(cafile=str(ca))
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            return str(response.headers) + response.read().decode()
        except OSError:
            time.sleep(0.1)
            return None
        finally:
            connection.close()

    told: str = wait_until(answered, WAIT_S, f"an answer from port {port}")
    return told


@pytest.mark.parametrize(
    "broken",
    [
        f'fleet = "garden"\n[broker]\npassword = "{PASSWORD}',
        f'fleet = "garden"\n[broker]\npassword = ["{PASSWORD}"]\n',
        f'fleet = "garden"\n[broker]\npasword = "{PASSWORD}"\n',
        f'fleet = "garden"\n[http]\ntoken = {{value = "{PASSWORD}"}}\n',
        f'fleet = "garden"\n[http]\ntoken = "{PASSWORD}"\n',
        f'fleet = "garden"\nbroker = "{PASSWORD}"\n',
        f'fleet = "garden"\ngroup = "no/name {PASSWORD}"\n',
    ],
)
def test_wrong_settings_are_named_without_a_secret(broken: str, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(broken)
    ended = run(tmp_path, "gateway.command", "--config", "gateway.toml")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert PASSWORD not in ended.stdout + ended.stderr


def test_a_secret_in_the_environment_is_masked_too(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text('fleet = "garden"\n')
    shown = run(
        tmp_path, "gateway.command", "--config", "gateway.toml", "--show-config",
        POLLEN_BROKER_PASSWORD=PASSWORD, POLLEN_HTTP_TOKEN=GATEWAY_TOKEN,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert found([PASSWORD, GATEWAY_TOKEN], shown.stdout + shown.stderr) == []


def test_the_authoritys_commands_print_no_key(
    authority: Authority, secrets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["ca", "issue", "pi-01", "--role", "device"],
        ["ca", "issue", "pi-01", "--role", "device", "--replace"],
        ["ca", "list"],
        ["ca", "list", "--json"],
        ["ca", "crl"],
        ["ca", "issue", "pi-01", "--role", "gateway"],
    ):
        main([*words, "--dir", str(authority.folder)])
    main(["revoke", "pi-01", "--ca", str(authority.folder)])
    told = capsys.readouterr()
    keys = [line for key in authority.folder.rglob("*.key") for line in key.read_text().splitlines()[1:-1]]
    assert found([*secrets, *keys], told.out + told.err) == []
