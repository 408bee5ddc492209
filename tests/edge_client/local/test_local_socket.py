"""The socket beside the agent: answers, predictions, and clients that misbehave."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.learning.prediction import Prediction
from edge_client.local.local_socket import (
    CLIENTS,
    LocalSocket,
    NotRunningError,
    ask_status,
    follow_predictions,
)


def prediction(number: int, size: int = 1, value: float = 0.5) -> Prediction:
    values = np.full(size, value, np.float32)
    return Prediction(number, 1e9, True, values, version=3, error=0.25, anomaly=None, is_anomaly=False)


class Loop:
    """An agent's loop: polls the socket, and publishes a prediction a turn."""

    def __init__(self, path: Path, size: int = 1) -> None:
        self.socket = LocalSocket(path)
        self.socket.open()
        self.turns = 0
        self._size = size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            self.socket.poll(lambda: {"turns": self.turns})
            self.socket.publish(prediction(self.turns, self._size))
            self.turns += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    deep = tmp_path / ("a-folder-with-a-long-name-" * 4) / "edge.sock"  # beyond what a socket's address may hold
    assert len(str(deep)) > 108
    return deep


@pytest.fixture
def loop(path: Path) -> Iterator[Loop]:
    running = Loop(path)
    yield running
    running.stop()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    client.connect(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    client.settimeout(20)
    return client


def test_the_agent_answers_with_its_status(loop: Loop, path: Path) -> None:
    assert ask_status(path)["turns"] >= 0


def test_predictions_come_one_a_line_in_order(loop: Loop, path: Path) -> None:
    lines = follow_predictions(path)
    found = [json.loads(next(lines)) for _ in range(20)]
    numbers = [one["window"] for one in found]
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    assert found[0] | {"window": 0} == {
        "window": 0, "time": 1e9, "clock": "synchronised", "version": 3, "values": [0.5],
        "error": 0.25, "anomaly": False, "anomaly_probability": None,
    }  # fmt: skip


def test_a_number_that_is_not_finite_is_null_not_a_broken_line(path: Path) -> None:
    from edge_client.local.json_lines import line_of

    assert json.loads(line_of(prediction(1, value=float("nan"))))["values"] == [None]


def test_without_an_agent_the_error_says_how_to_start_it(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with pytest.raises(NotRunningError, match="no pollen-edge runs there; start it"):
        ask_status(path)


def test_the_socket_of_a_killed_agent_is_replaced(path: Path) -> None:
    first = LocalSocket(path)
    first.open()
    first._listener.close()  # type: ignore[union-attr] # as after kill -9: the name stays
    second = Loop(path)
    try:
        assert "turns" in ask_status(path)
    finally:
        second.stop()
    assert not path.exists()


def test_a_reader_that_never_reads_is_dropped_and_blocks_nobody(path: Path, wait_until) -> None:  # type: ignore[no-untyped-def]
    loop = Loop(path, size=2000)
    try:
        slow = connected(path)
        slow.sendall(b"predict\n")
        wait_until(lambda: loop.socket._following, 20, "the slow reader")
        wait_until(lambda: not loop.socket._following, 20, "its end")
        assert "turns" in ask_status(path)
        slow.close()
    finally:
        loop.stop()


def test_clients_that_never_ask_make_room_for_those_that_do(loop: Loop, path: Path) -> None:
    idle = [connected(path) for _ in range(3 * CLIENTS)]
    assert "turns" in ask_status(path)
    assert idle[0].recv(1) == b""
    for client in idle:
        client.close()


@pytest.mark.parametrize("request_bytes", [b"x" * 1000, b"\0\n", b"status"])
def test_nonsense_is_answered_by_hanging_up(loop: Loop, path: Path, request_bytes: bytes) -> None:
    client = connected(path)
    client.sendall(request_bytes)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(10) == b""
    assert "turns" in ask_status(path)


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    one = LocalSocket(path)
    one.open()
    one.close()
    assert path.read_text() == "mine"
    assert "can't listen there" in caplog.text


def test_a_folder_that_cannot_be_written_is_reported_and_ends_nothing(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    one = LocalSocket(tmp_path / "file" / "edge.sock")
    one.open()
    one.poll(dict)
    assert "can't listen there" in caplog.text
