"""The whole with a fleet on which faults are injected: loopback, a cable, a bad line, small disks, clocks that jump."""

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from edge_client.settings import EdgeSettings, Sensor, Session, Storage, Training, Upload
from gateway.settings import Gateway
from pollen.service import Logging
from server.settings import Publishing
from tests.faults import network, small_disk
from tests.faults.books import Books
from tests.faults.clock_jump import SOURCE, Clocks
from tests.faults.lossy_link import LossyLink
from tests.faults.network import Cable, Namespace
from tests.faults.recovery import Recovery
from tests.faults.small_disk import SmallDisk
from tests.system.whole import Whole

WAVE = 8  # devices that start at once; each takes a second of CPU
START_WAVE_S = 90.0
RECOVER_S = 150.0
GATEWAY_EXPIRY_S = 15
SERVER_DISK_MB = 16
DEVICE_DISK_MB = 4
_LISTEN_TOO = """\
#!/bin/sh
# Mosquitto, which listens at the ends of the links too.
[ "$1" = -c ] || exec {binary} "$@"
port=$(sed -n 's/^listener \\([0-9]*\\).*/\\1/p' "$2")
{{ cat "$2"; for address in {addresses}; do echo "listener $port $address"; done; }} > "$2.faults"
exec {before} {binary} -c "$2.faults"
"""


class Fleet(Whole):
    """`count` devices in all, of them `cabled` behind a cable and `far` behind a bad line (none of either where network
    namespaces can't be had), and `small` others on small disks, as the server is (where tmpfs can be mounted).

    `period_s` between two readings of a sensor; `keepalive_s` of the devices and gateways.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path,
        bundle: Path,
        *,
        count: int,
        cabled: int,
        far: int,
        small: int,
        period_s: float,
        keepalive_s: int,
    ) -> None:
        devices = tuple(f"pi-{number + 1:02}" for number in range(count))
        self.no_network = network.missing()
        self.no_small_disk = small_disk.missing()
        # Small disks at the one end, cable and bad line at the other.
        self.small = () if self.no_small_disk else devices[:small]
        self.cabled, self.far = ((), ()) if self.no_network else (devices[-far - cabled : -far], devices[-far:])
        self._period_s = period_s
        self._keepalive_s = keepalive_s
        self._stack = ExitStack()
        folder.mkdir(parents=True)
        self.clocks = Clocks(folder / "clocks")
        self._namespaces = () if self.no_network else (Namespace(0), Namespace(1))
        self._wrapped = binary
        super().__init__(
            folder,
            folder / "mosquitto",
            bundle,
            devices=devices,
            gateways=("gateway-1", "gateway-2"),
            server_changes={"publish": Publishing(0.5)},
        )
        self.books = Books(self)
        self.recoveries: list[Recovery] = []
        self.sound = True  # whether the last fault was survived

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for namespace in self._namespaces:
                stack.enter_context(namespace)
            if self._namespaces:
                self.cable = Cable(self._namespaces[0])
                self.link = stack.enter_context(LossyLink(self._namespaces[1]))
            self.disks = {name: SmallDisk(self.folder / name, DEVICE_DISK_MB) for name in self.small}
            if not self.no_small_disk:
                self.disks["server"] = SmallDisk(self.folder / "server", SERVER_DISK_MB)
            for disk in self.disks.values():
                stack.enter_context(disk)
            self._write_broker()
            super().__enter__()
            stack.push(super().__exit__)
            stack.enter_context(self.books)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def _write_broker(self) -> None:
        script = self.folder / "mosquitto"
        addresses = " ".join(namespace.here for namespace in self._namespaces)
        binary, before = shlex.quote(str(self._wrapped)), shlex.join(self.clocks.before("broker"))
        script.write_text(_LISTEN_TOO.format(binary=binary, addresses=addresses, before=before), encoding="ascii")
        script.chmod(0o700)

    # --- how the parts are started

    def start_devices(self) -> None:
        """Start them in waves: two cores can't start fifty interpreters at once in time."""
        self.restart_all(self.devices)

    def restart_all(self, names: tuple[str, ...]) -> None:
        """Start the devices `names` in waves, each once the last is connected."""
        for first in range(0, len(names), WAVE):
            wave = names[first : first + WAVE]
            with self.expect_logged(wave, "connected to", START_WAVE_S):
                for name in wave:
                    self.start_device(name)

    def before(self, name: str) -> list[str]:
        """Every process has its own wall clock; some devices have their own network."""
        for names, namespace in zip((self.cabled, self.far), self._namespaces, strict=False):
            if name in names:
                return [*namespace.enter, *self.clocks.before(name)]
        return self.clocks.before(name)

    def device_settings(self, name: str) -> EdgeSettings:
        """A device that sends something every six readings, and has patience enough for a bad line."""
        chosen = super().device_settings(name)
        broker = replace(chosen.broker, keepalive_s=self._keepalive_s)
        for names, namespace in zip((self.cabled, self.far), self._namespaces, strict=False):
            if name in names:
                broker = replace(broker, host=namespace.here, plain=True)
        return replace(
            chosen,
            broker=broker,
            sensor=Sensor("replay", period_s=self._period_s * self._pace(name), options=chosen.sensor.options),
            training=Training(new_samples=6, max_steps=4, fetch_s=2.0),
            upload=Upload(retry_s=5.0, drain_s=30.0, vitals_s=5.0),
            session=Session(expiry_s=600, will_delay_s=2, reconnect_min_s=0.5, reconnect_max_s=5.0),
            storage=Storage(flush_s=1.0 if name in self.small else 60.0),
            logging=Logging("info"),
        )

    def _pace(self, name: str) -> float:
        """From 0.8 to 1.2, so that the devices don't march in step, and something is on its way at any moment."""
        return 0.8 + 0.4 * self.devices.index(name) / len(self.devices)

    def gateway_settings(self, name: str) -> Gateway:
        """A gateway whose share, when it died, is given to the others after GATEWAY_EXPIRY_S."""
        chosen = super().gateway_settings(name)
        broker = replace(chosen.broker, keepalive_s=self._keepalive_s)
        return replace(chosen, broker=broker, session_expiry_s=GATEWAY_EXPIRY_S)

    # --- what happens to them

    def freeze(self, name: str) -> None:
        """Stop the process as a hanging machine does: its connections stay and nothing answers."""
        self._running[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._running[name].process.send_signal(signal.SIGCONT)

    def has_shifted_clock(self, name: str) -> bool:
        """Whether the process runs with a clock of `clocks`."""
        return SOURCE.stem in Path(f"/proc/{self._running[name].process.pid}/maps").read_text(encoding="utf-8")

    def has_ended(self, name: str) -> int | None:
        """The exit code of a process that may end by itself now, None while it runs."""
        child = self._running[name]
        code = child.process.poll()
        child.stopped = child.stopped or code is not None
        return code

    def logged(self, name: str, text: str) -> int:
        """How often `text` is in a process's log."""
        log = self.log(name)
        return log.read_text(encoding="utf-8", errors="replace").count(text) if log.exists() else 0

    @contextmanager
    def expect_logged(self, names: tuple[str, ...], text: str, seconds: float) -> Iterator[None]:
        """Wait, after the body, until each of `names` has logged `text` once more."""
        before = {name: self.logged(name, text) for name in names}
        yield
        self.wait_for(
            lambda: all(self.logged(name, text) > count for name, count in before.items()),
            seconds,
            f"{', '.join(names)} log {text!r}",
        )

    def remain(self, seconds: float) -> None:
        """Let a fault last so long; nothing that should run may end meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check_alive()
            time.sleep(0.1)

    @contextmanager
    def fault(self, name: str, *, hit: tuple[str, ...] | None = None) -> Iterator["Fault"]:
        """Inject the fault in the body, out of full service; it is over at the body's end, or at `cleared()`.

        Then everyone must have an update merged, and every update promised until then must be in the books once. `hit`:
        the devices that the fault concerns, all unless given; it begins when an update of theirs is on its way.
        """
        assert self.books.wait_for_each(self.devices, RECOVER_S) is not None, "no full service before the fault"
        self.sound = False
        concerned = hit or self.devices
        self.wait_for(lambda: self.in_flight(*concerned), RECOVER_S, "an update in flight")
        fault = Fault(self, name, concerned)
        yield fault
        fault.settle()
        self.sound = True


class Fault:
    """One fault from its beginning on."""

    def __init__(self, fleet: Fleet, name: str, hit: tuple[str, ...]) -> None:
        self._fleet = fleet
        self._name = name
        self._hit = hit
        self._again = fleet.books.sent_again()
        self._merges = fleet.books.count
        self._in_flight = 0
        self._began = time.monotonic()
        self._ended: float | None = None

    @property
    def merged(self) -> int:
        """Merges since it began."""
        return self._fleet.books.count - self._merges

    def injected(self) -> None:
        """Note how many updates of the devices concerned it has met on their way."""
        self._in_flight = self._fleet.in_flight(*self._hit)

    def cleared(self) -> None:
        """The fault is over with what comes next; from now on it is the recovery."""
        self._promised = self._fleet.books.promised()
        self._cleared_at = self._fleet.books.count
        self._ended = time.monotonic()

    def settle(self) -> None:
        """Wait for full service, check the books, note what it took."""
        if self._ended is None:
            self.cleared()
        assert self._ended is not None
        fleet, books = self._fleet, self._fleet.books
        at = books.wait_for_each(fleet.devices, RECOVER_S, after=self._cleared_at)
        late = books.without_merge(fleet.devices, self._cleared_at)
        assert at is not None, f"{self._name}: nothing of {', '.join(late)} was merged within {RECOVER_S:g} s"
        fleet.wait_for(
            lambda: self._promised <= books.merged(), RECOVER_S, f"{self._name}: what was promised is merged"
        )
        fleet.check_alive()
        books.check()
        again = books.sent_again()
        fleet.recoveries.append(
            Recovery(
                fault=self._name,
                devices=len(self._hit),
                lasted_s=self._ended - self._began,
                in_flight=self._in_flight,
                merged_meanwhile=self._cleared_at - self._merges,
                published_again=again[0] - self._again[0],
                receipts_again=again[1] - self._again[1],
                recovered_s=at - self._ended,
            )
        )
