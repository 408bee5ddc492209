"""The Unix socket by which others on this machine ask the running agent, and follow its predictions.

One line each way: a client sends `status` and gets one line of JSON, or `predict` and gets a line a window until it
leaves. Everything happens in the agent's own loop and never blocks it: a client that reads too slowly is dropped.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edge_client.learning.prediction import Prediction
from edge_client.local.json_lines import line_of
from pollen.errors import PollenError

LOG = logging.getLogger(__name__)

CLIENTS: Final = 8
REQUEST_BYTES: Final = 64
ANSWER_S: Final = 10.0


class NotRunningError(PollenError):
    """No agent answers at the socket."""


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for `path` below the 108 bytes that unix(7) allows, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class LocalSocket:
    """Listens at `path`, for the user and group of the agent. Failing to is logged and ends nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: socket.socket | None = None
        self._asking: list[socket.socket] = []
        self._following: list[socket.socket] = []

    def open(self) -> None:
        """Start listening, in place of a socket that an earlier run left."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_socket():  # anything else is somebody's file
                self._path.unlink()
            with _address(self._path) as address:
                listener.bind(address)
            self._path.chmod(0o660)
            listener.listen(CLIENTS)
        except OSError as error:
            listener.close()
            LOG.error("%s: can't listen there (%s); `pollen-edge status` will not work", self._path, error)
            return
        self._listener = listener

    def poll(self, status: Callable[[], dict[str, Any]]) -> None:
        """Take new clients, and answer those that have asked."""
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            for _ in range(2 * CLIENTS):  # who connects for ever must not hold up the loop
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._asking.append(client)
                if len(self._asking) + len(self._following) > CLIENTS:
                    self._asking.pop(0).close()  # it had its time to ask
        for client in list(self._asking):
            self._answer(client, status)
        self._drop_the_gone()

    def publish(self, prediction: Prediction) -> None:
        """Send a prediction to all who follow."""
        if not self._following:
            return
        line = line_of(prediction).encode() + b"\n"
        for client in list(self._following):
            try:
                whole = client.send(line) == len(line)
            except OSError:
                whole = False
            if not whole:
                self._drop(client)

    def close(self) -> None:
        """Stop listening and let all clients go."""
        for client in [*self._asking, *self._following]:
            client.close()
        self._asking, self._following = [], []
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _answer(self, client: socket.socket, status: Callable[[], dict[str, Any]]) -> None:
        try:
            request = client.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            request = b""
        self._asking.remove(client)
        if request == b"predict\n":
            self._following.append(client)
            return
        if request == b"status\n":
            with contextlib.suppress(OSError):
                client.send(json.dumps(status()).encode() + b"\n")
        client.close()

    def _drop_the_gone(self) -> None:
        for client in list(self._following):
            try:
                gone = client.recv(REQUEST_BYTES) == b""
            except BlockingIOError:
                continue
            except OSError:
                gone = True
            if gone:
                self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        client.close()
        self._following.remove(client)


def ask_status(path: Path) -> dict[str, Any]:
    """The running agent's status. Raises NotRunningError."""
    with _connected(path, "status") as lines:
        for line in lines:
            found: dict[str, Any] = json.loads(line)
            return found
    raise NotRunningError(f"{path}: the agent gave no answer within {ANSWER_S:g} s, or to so many; look at its log")


def follow_predictions(path: Path) -> Iterator[str]:
    """The running agent's predictions, one line of JSON each, until it stops. Raises NotRunningError."""
    with _connected(path, "predict") as lines:
        yield from lines


@contextlib.contextmanager
def _connected(path: Path, request: str) -> Iterator[Iterator[str]]:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with client:
        try:
            with _address(path) as address:
                client.connect(address)
            client.sendall(request.encode() + b"\n")
        except OSError as error:
            reason = "no pollen-edge runs there; start it"
            if isinstance(error, PermissionError):
                reason = "this user may not use it; become the agent's user, or join its group"
            raise NotRunningError(f"{path}: {reason}") from error
        client.settimeout(ANSWER_S if request == "status" else None)
        with client.makefile("r", encoding="utf-8") as stream:
            yield _until_gone(stream)


def _until_gone(stream: Iterator[str]) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in stream:
            yield line.rstrip("\n")
