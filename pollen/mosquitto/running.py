"""Run one Mosquitto of our own: its own folder, its own port, never the system's service."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pollen.errors import PollenError
from pollen.mosquitto import configuration, hangup
from pollen.mosquitto.access import Account
from pollen.mosquitto.configuration import Tls
from pollen.mosquitto.limits import Limits

HOST: Final = "127.0.0.1"
_START_S: Final = 15.0
_STOP_S: Final = 30.0  # on SIGTERM it writes its store, which may hold many updates
_ATTEMPTS: Final = 5


class Mosquitto:
    """One broker process for one fleet.

    `folder` takes configuration, store and log (`mosquitto.log`); the store is read again at the next start
    there. Without `port` a free one is taken at the first start and kept. Use it as a context manager, or
    `start` and `stop`. The process is in a session of its own: Ctrl-C at a terminal doesn't reach it, so that
    its clients can be stopped first. With `tls` certificates prove identity, not passwords.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        fleet: str,
        accounts: Sequence[Account],
        port: int | None = None,
        limits: Limits | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.folder = folder
        self._binary = binary
        self._fleet = fleet
        self._accounts = tuple(accounts)
        self._limits = limits or Limits()
        self._tls = tls
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; PollenError before the first start when none was given."""
        if self._port is None:
            raise PollenError("this Mosquitto has no port yet; start it first")
        return self._port

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running, or last, process; PollenError before the first start."""
        if self._process is None:
            raise PollenError("this Mosquitto was never started; start it first")
        return self._process

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The log file."""
        return self.folder / configuration.LOG

    def start(self) -> None:
        """Start it and return once it accepts connections. Raises PollenError with the log's last line."""
        if self.running:
            return
        fixed = self._port
        for attempt in range(_ATTEMPTS):
            port = fixed or _free_port()
            try:
                self._start(port)
            except PollenError:
                # Between finding a port free and listening on it, another process may have taken it.
                if fixed or attempt == _ATTEMPTS - 1 or _is_free(port):
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """End it with SIGTERM; it writes its store first."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would: what came since the last autosave is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop it, writing the store, and start it again on the same port."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Have it read access rules, passwords, certificates and revocations again; connections stay."""
        hangup.send(self.process.pid, HOST, self.port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, port: int) -> None:
        if not _is_free(port):
            raise PollenError(f"port {port} on {HOST} is in use; stop what listens there or give Mosquitto another")
        path = configuration.write(
            self.folder, fleet=self._fleet, accounts=self._accounts, port=port, limits=self._limits, tls=self._tls
        )
        try:
            self._process = subprocess.Popen(
                [self._binary, "-c", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise PollenError(f"{self._binary}: can't be started: {error}") from error
        try:
            self._wait_until_it_accepts(self._process, port)
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_accepts(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PollenError(f"Mosquitto ended at its start with code {process.returncode}: {self._last_line()}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
                return
            time.sleep(0.02)
        raise PollenError(f"Mosquitto accepted no connection within {_START_S:g} s; see {self.log}")

    def _last_line(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else f"it wrote no log to {self.log}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Mosquitto itself does: connections in TIME_WAIT from the broker before are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
