"""Connections to the server's gRPC port that say nothing, or not enough: they end, and the gateways' streams go on."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from pollen import bridge
from server import GatewayHub, Listen, bridge_service
from tests.server.gateway_client import GatewayClient, bundle

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
HEADERS = b"\x00\x00\x05\x01\x00\x00\x00\x00\x01\x82\x86"  # the beginning of a HEADERS frame that never ends
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayHub]:
    monkeypatch.setattr(bridge_service, "HELLO_S", 2.0)
    with GatewayHub(listen=Listen(port=0)) as hub:
        hub.add(bundle(), 60.0)
        hub.start()
        yield hub


def wait_until_closed(connection: socket.socket, seconds: float) -> None:
    connection.settimeout(seconds)
    with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012  # either end may be the one that notices
        while connection.recv(4096):
            pass
        raise EOFError


@pytest.mark.parametrize("said", [b"", PREFACE, PREFACE[:7], b"GET / HTTP/1.1\r\n"])
def test_a_connection_that_never_becomes_a_gateway_is_closed(hub: GatewayHub, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hub.port)) as slow:
        slow.sendall(said)
        wait_until_closed(slow, 20.0)


def test_hundreds_of_silent_connections_keep_no_gateway_out(hub: GatewayHub) -> None:
    with ExitStack() as stack:
        for number in range(400):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", hub.port)))
            slow.sendall((b"", PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS + HEADERS)[number % 4])
        with GatewayClient(hub.port) as gateway:
            assert gateway.model("bundle")


def test_streams_that_never_greet_keep_no_gateway_out_for_long(hub: GatewayHub) -> None:
    """As many as the server takes at once: they are cut off, and the gateway that was told to wait gets in."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{hub.port}") as channel:
        silent = [channel.stream_stream(bridge.METHOD)(nothing()) for _ in range(bridge_service.MAX_GATEWAYS)]
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            try:
                with GatewayClient(hub.port) as gateway:
                    assert gateway.model("bundle")
                break
            except AssertionError:
                time.sleep(0.2)
        over.set()
        for call in silent:
            call.cancel()
