"""A TCP forwarder that can be cut: one device's cable to the broker, pulled and put back."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class NetworkCut:
    """Forwards connections to `port` of this class to `target_port`, both on the loopback interface.

    While cut, connections are dropped with a reset and new ones refused; the port stays reserved.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._open = False
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Drop all connections and refuse new ones until `restore`."""
        self._stop_listening()
        self._listener = _bound(self.port)  # bound, not listening: connecting is refused

    def restore(self) -> None:
        """Accept connections again."""
        with self._lock:
            if self._open:
                return
            self._open = True
            self._listener.listen()
            threading.Thread(target=self._accept, args=(self._listener,), name="network-cut", daemon=True).start()

    def close(self) -> None:
        """Drop everything and give the port back."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        with self._lock:
            self._open = False
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._listener.close()
            for connection in self._connections:
                _reset(connection)
            self._connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((HOST, self._target_port), timeout=5)
            except OSError:  # the broker is down: the device sees it as such
                _reset(near)
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                if not self._open:
                    _reset(near)
                    _reset(far)
                    return
                self._connections |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), name="network-cut", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                sink.sendall(data)
        except OSError:
            pass
        with self._lock:
            for connection in (source, sink):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # wakes the other direction's pump
            for connection in {source, sink} & self._connections:
                self._connections.discard(connection)
                connection.close()


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    return listener


def _reset(connection: socket.socket) -> None:
    """End a connection as a pulled cable and a rebooted peer do, without the orderly FIN."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
