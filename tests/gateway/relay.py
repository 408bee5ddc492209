"""A TCP relay that can fall silent: connections stay open and nothing passes, as when a cable is pulled far away."""

import contextlib
import select
import socket
import threading
from typing import Self


class Relay:
    """Listens on 127.0.0.1 and passes everything on to `target`, a port there. A context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._peers: dict[socket.socket, socket.socket] = {}
        self._silent: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)
        for one in (self._listener, *self._peers):
            one.close()

    def fall_silent(self) -> None:
        """Pass nothing on any more of the connections there are now; new ones work."""
        self._silent |= set(self._peers)

    def _run(self) -> None:
        while not self._stopped.is_set():
            watched = [self._listener, *(one for one in list(self._peers) if one not in self._silent)]
            for ready in select.select(watched, [], [], 0.05)[0]:
                if ready is self._listener:
                    self._accept()
                elif ready in self._peers and ready not in self._silent:
                    self._pass_on(ready)

    def _accept(self) -> None:
        here, _ = self._listener.accept()
        self.connections += 1
        try:
            there = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            here.close()
            return
        self._peers[here], self._peers[there] = there, here

    def _pass_on(self, source: socket.socket) -> None:
        sink = self._peers[source]
        with contextlib.suppress(OSError):
            if data := source.recv(65536):
                sink.sendall(data)
                return
        for one in (source, sink):
            del self._peers[one]
            one.close()
