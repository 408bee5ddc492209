"""The HTTP service against slow, many and large clients, over real sockets."""

import socket
import time
import urllib.error
import urllib.request

import pytest
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


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        return response.read().decode()


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
