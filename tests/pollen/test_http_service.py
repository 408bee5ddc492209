"""The HTTP service against slow, many and large clients, over real sockets."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from pollen import http_service
from pollen.errors import PollenError
from pollen.http_service import HttpService
from pollen.http_settings import Http


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def large(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * 50_000_000)


def ended(connection: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection within `seconds`."""
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        try:
            while connection.recv(100_000):
                pass
        except TimeoutError:
            return False
    return True


def answered(connection: socket.socket) -> bool:
    """Whether the answer to a request comes on a connection that stays open."""
    answer = b""
    while not answer.endswith(b"hello"):
        read = connection.recv(1000)
        if not read:
            return False
        answer += read
    return True


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        body: bytes = response.read()
        return body.decode()


def test_it_serves_and_a_taken_port_is_named() -> None:
    with HttpService(Starlette(routes=[Route("/", hello)]), Http()) as service:
        assert get(service.port) == "hello"
        with pytest.raises(PollenError, match=f"{service.port}: can't listen there"):
            HttpService(Starlette(), Http(port=service.port))


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET"]
)
def test_a_request_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(http_service, "REQUEST_S", 0.5)
    with HttpService(Starlette(routes=[Route("/", hello)]), Http()) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as slow:
            slow.sendall(said)
            started = time.monotonic()
            try:
                while slow.recv(1000):
                    pass
            except ConnectionError:
                pass
            assert time.monotonic() - started < 9
        assert get(service.port) == "hello"


def test_a_client_that_dribbles_is_cut_off_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "REQUEST_S", 0.5)
    with (
        HttpService(Starlette(routes=[Route("/", hello)]), Http()) as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=10) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012  # which line it comes from is a matter of time
            for _ in range(100):
                slow.sendall(b"x: y\r\n")
                time.sleep(0.1)


def test_a_header_beyond_the_limit_is_refused() -> None:
    with HttpService(Starlette(routes=[Route("/", hello)]), Http()) as service:
        request = urllib.request.Request(f"http://127.0.0.1:{service.port}/", headers={"X": "y" * 1_000_000})
        with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
            urllib.request.urlopen(request, timeout=10)  # noqa: S310  # our own address
        assert get(service.port) == "hello"


def test_who_does_not_read_the_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "ANSWER_S", 0.5)
    with HttpService(Starlette(routes=[Route("/", large)]), Http()) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert slow.recv(10) == b"HTTP/1.1 2"
            time.sleep(1.5)
            got = 0
            with contextlib.suppress(ConnectionError):
                while read := slow.recv(1_000_000):
                    got += len(read)
            assert got < 50_000_000
        assert len(get(service.port)) == 50_000_000


def test_a_newcomer_gets_the_place_of_who_has_waited_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "MAX_CONNECTIONS", 4)
    with HttpService(Starlette(routes=[Route("/", hello)]), Http()) as service, contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10)) for _ in range(4)
        ]
        for connection in opened[1:]:  # the first stays silent
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answered(connection)
        assert get(service.port) == "hello"
        assert ended(opened[0], 10.0)
        for connection in opened[1:]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answered(connection)


def test_an_answer_is_not_cut_off_for_those_who_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "MAX_CONNECTIONS", 4)
    with HttpService(Starlette(routes=[Route("/", large)]), Http()) as service, contextlib.ExitStack() as stack:
        honest = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
        honest.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        got = len(honest.recv(1000))
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10)) for _ in range(20)
        ]
        assert ended(silent[0], 10.0)
        while read := honest.recv(1_000_000):
            got += len(read)
        assert got > 50_000_000


def test_handshakes_that_never_end_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "MAX_CONNECTIONS", 8)
    certificate, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        HttpService(Starlette(routes=[Route("/", hello)]), Http(certificate=certificate, key=key)) as service,
        contextlib.ExitStack() as stack,
    ):
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10)) for _ in range(40)
        ]
        with urllib.request.urlopen(f"https://127.0.0.1:{service.port}/", timeout=20, context=trusting) as response:
            assert response.read() == b"hello"
        assert all(ended(connection, 10.0) for connection in silent[:20])


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, "not loopback"),  # noqa: S104
        ({"port": 70000}, "port = 70000"),
        ({"token": "short"}, "token"),
    ],
)
def test_settings_that_would_be_open_to_everyone_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Http(**settings)  # type: ignore[arg-type]
