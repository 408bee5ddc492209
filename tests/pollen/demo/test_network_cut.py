import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pollen.demo.network_cut import HOST, NetworkCut


class Echo:
    """A server that sends everything back, on many connections at once."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            pass
        connection.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def cut(echo: Echo) -> Iterator[NetworkCut]:
    with NetworkCut(echo.port) as forwarder:
        yield forwarder


def connect(forwarder: NetworkCut) -> socket.socket:
    return socket.create_connection((HOST, forwarder.port), timeout=5)


def exchange(connection: socket.socket, payload: bytes) -> bytes:
    sender = threading.Thread(target=connection.sendall, args=(payload,))
    sender.start()
    received = b""
    while len(received) < len(payload):
        part = connection.recv(65536)
        if not part:
            break
        received += part
    sender.join()
    return received


def test_bytes_pass_unchanged_in_both_directions(cut: NetworkCut) -> None:
    payload = bytes(range(256)) * 8000
    with connect(cut) as connection:
        assert exchange(connection, payload) == payload


def test_a_cut_drops_connections_and_refuses_new_ones(cut: NetworkCut) -> None:
    with connect(cut) as connection:
        assert exchange(connection, b"before") == b"before"
        cut.cut()
        with contextlib.suppress(ConnectionError):
            assert connection.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(cut)


def test_after_restoring_connections_pass_again_on_the_same_port(cut: NetworkCut) -> None:
    port = cut.port
    for _ in range(3):
        cut.cut()
        with pytest.raises(ConnectionRefusedError):
            connect(cut)
        cut.restore()
        assert cut.port == port
        with connect(cut) as connection:
            assert exchange(connection, b"again") == b"again"


def test_restoring_what_was_never_cut_changes_nothing(cut: NetworkCut) -> None:
    with connect(cut) as connection:
        cut.restore()
        assert exchange(connection, b"still") == b"still"


def test_a_side_that_closes_closes_the_other(cut: NetworkCut) -> None:
    with connect(cut) as connection:
        assert exchange(connection, b"x") == b"x"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""


def test_a_target_that_is_down_looks_like_a_dropped_connection(echo: Echo, cut: NetworkCut) -> None:
    echo.close()
    try:
        with connect(cut) as connection:
            assert connection.recv(10) == b""
    except ConnectionError:
        pass  # the reset may come before connect() returns
