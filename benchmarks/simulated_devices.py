"""Many devices in one process, as cheap as can be: a connection each, one event loop, no training.

They keep what `pollen-edge` promises: the update is published again until its receipt comes, after each connection,
soon when the broker says that no gateway was there, else after `RETRY_S`; and they come back with its back-off. Run by
`benchmarks.deployment`: commands are JSON lines on standard input, each is answered by one line when it is done.

connect   everyone connects, `at_once` handshakes at a time; done when all are subscribed
pace      answer tasks at once (per_s null), `per_s` times a second in all at random times, or not at all (0)
vitals    everyone in turn sends vitals, `per_s` in all, QoS 0
idle      done when everyone holds a task that it has not answered
storm     everyone makes an update now; with `silent` the connections fall silent first, as in a power cut, and everyone
          dials again at once. Done when every one of these updates has its receipt
count     what happened since the last count
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.mqtt_connection import NO_MATCHING_SUBSCRIBERS, Connection
from pollen import messages, topics
from pollen.broker import Broker
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.messages import Birth, Session, Update, Vitals

RETRY_S: Final = 60.0
UNHEARD_S: Final = 1.0
TCP_S: Final = 5.0
LONGEST_WAIT_S: Final = 120.0
PING_S: Final = 30.0
SAMPLES: Final = 32
VITALS: Final = messages.encode(Vitals({f"measurement_{number}": number / 7 for number in range(16)}))


class Devices:
    """What the devices of this process share: the loop's pace, the update they send, and the counts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.fleet: str = settings["fleet"]
        self.port: int = settings["port"]
        self.fetches: bool = settings["fetches"]
        self.boot = os.urandom(8)
        self.pace: float | None = 0.0
        self.vitals_per_s = 0.0
        self.hand: deque[Device] = deque()  # those with a task and leave to answer it
        self.counts: Counter[str] = Counter()
        self.waits: list[float] = []
        self.subscribed_at = 0.0
        self.receipted_at = 0.0
        self.changed = asyncio.Event()
        manifest = Bundle.read(Path(settings["bundle"])).manifest
        delta = np.random.default_rng(1).normal(0, 1e-4, manifest.shared_size).astype(np.float32)
        self.delta: dict[str, Any] = dict(named(delta, manifest.shared))
        self.weights_topic = topics.model(self.fleet, manifest.model, "weights")
        self.all = [Device(self, **one) for one in settings["devices"]]

    def may_answer(self, device: "Device") -> None:
        """`device` holds a task, and the weights to train from."""
        if self.pace is None:
            device.answer()
        else:
            self.hand.append(device)
            self.changed.set()

    async def keep_pace(self) -> None:
        """Let devices answer at the times of a Poisson process, whatever becomes of the answers."""
        due = time.monotonic()
        while True:
            if not self.pace:
                await asyncio.sleep(0.05)
                due = time.monotonic()
                continue
            due += random.expovariate(self.pace)
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self.hand:
                self.hand.popleft().answer()
            else:
                self.counts["no_device_free"] += 1

    async def keep_vitals(self) -> None:
        """Send vitals at even times."""
        due = time.monotonic()
        for device in itertools.cycle(self.all):
            while not self.vitals_per_s:
                await asyncio.sleep(0.05)
                due = time.monotonic()
            due += 1 / self.vitals_per_s
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            device.send_vitals()

    async def keep_alive(self) -> None:
        """Ping: a device that waits for its turn says nothing for longer than a keep-alive."""
        while True:
            await asyncio.sleep(PING_S)
            for device in self.all:
                device.connection.ping()

    # --- commands

    async def connect(self, at_once: int) -> dict[str, Any]:
        """Connect everyone."""
        started = time.monotonic()
        limit = asyncio.Semaphore(at_once)

        async def one(device: Device) -> None:
            async with limit:
                await device.dial()
                await device.up.wait()

        await asyncio.gather(*[one(device) for device in self.all])
        return {"seconds": time.monotonic() - started}

    async def set_pace(self, per_s: float | None) -> dict[str, Any]:
        """Change how tasks are answered."""
        self.pace = per_s
        while per_s is None and self.hand:
            self.hand.popleft().answer()
        return {}

    async def set_vitals(self, per_s: float) -> dict[str, Any]:
        """Change how often vitals are sent; 0: never."""
        self.vitals_per_s = per_s
        return {}

    async def idle(self) -> dict[str, Any]:
        """Wait until everyone holds a task."""
        while sum(device.free for device in self.all) < len(self.all):
            self.changed.clear()
            await self.changed.wait()
        return {}

    async def storm(self, *, silent: bool) -> dict[str, Any]:
        """Updates by all of them, and a receipt for each."""
        self.hand.clear()
        self.counts.clear()
        started = time.monotonic()
        for device in self.all:
            device.make_update()
        if silent:
            for device in self.all:
                device.lose_power()
        while any(device.pending is not None or not device.up.is_set() for device in self.all):
            self.changed.clear()
            await self.changed.wait()
        counts = dict(self.counts)
        return {"started": started, "subscribed": self.subscribed_at, "receipted": self.receipted_at, "counts": counts}

    async def count(self) -> dict[str, Any]:
        """Counts and milliseconds from publish to receipt."""
        counts, waits = dict(self.counts), [round(1000 * wait, 2) for wait in self.waits]
        self.counts.clear()
        self.waits.clear()
        return {"counts": counts, "waits_ms": waits}


class Device:
    """One device: at most one task in hand, or one update without a receipt."""

    def __init__(self, devices: Devices, name: str, password: str, tls: dict[str, str] | None) -> None:
        self.name = name
        self.connection = Connection(self, name, password)
        self.up = asyncio.Event()
        self.task: messages.Task | None = None
        self.pending: bytes | None = None
        self._all = devices
        self._password = password
        files = {key: Path(value) for key, value in (tls or {}).items()}
        self._tls = Broker(port=devices.port, **files).tls_context()  # type: ignore[arg-type]
        self._connections = self._attempt = self._seq = 0
        self._made_at = self._published_at = 0.0
        self._packet = -1
        self._again: asyncio.TimerHandle | None = None
        self._topic = {leaf: topics.device(devices.fleet, name, leaf) for leaf in ("state", "update")}
        self._dialling: asyncio.Task[None] | None = None
        self._silent: list[Connection] = []  # kept, as a collected socket would be closed, and so be no longer silent

    @property
    def free(self) -> bool:
        """Whether it holds a task that it has not answered."""
        return self.task is not None and self.pending is None

    async def dial(self) -> None:
        """Connect, again and again, with the waits of pollen-edge: at most 1, 2, 4 … 120 s, full jitter."""
        loop = asyncio.get_running_loop()
        while True:
            self.connection = Connection(self, self.name, self._password)
            self._connections += 1
            try:
                await asyncio.wait_for(self._connect(loop), TCP_S + (60.0 if self._tls else 0.0))
            except (OSError, TimeoutError) as error:
                self._all.counts[f"refused: {type(error).__name__}"] += 1
                await asyncio.sleep(random.uniform(0, min(LONGEST_WAIT_S, 2.0**self._attempt)))
                self._attempt += 1
            else:
                return

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        host = "127.0.0.1"
        await loop.create_connection(
            lambda: self.connection, host, self._all.port, ssl=self._tls, server_hostname=host if self._tls else None
        )

    def answer(self) -> None:
        """Make the update for the task in hand and publish it."""
        if self.free:
            self.make_update()
            self.publish()

    def make_update(self) -> None:
        """Make the update for the task in hand; it is published when there is a connection."""
        if self.task is None:
            raise RuntimeError(f"{self.name} has no task; wait until all are idle")
        self._seq += 1
        update = Update(self.task.task, self._seq, self.task.version, SAMPLES, 4, self._all.delta, {"loss_after": 0.5})
        self.pending = messages.encode(update)
        self._made_at = time.monotonic()

    def publish(self) -> None:
        """Publish what has no receipt yet."""
        if self.pending is None or not self.up.is_set():
            return
        self._published_at = time.monotonic()
        self._packet = self.connection.publish(self._topic["update"], self.pending)
        self._repeat_in(RETRY_S)

    def send_vitals(self) -> None:
        """Say what a device says of itself every `vitals_s`."""
        if self.up.is_set():
            self.connection.publish(topics.device(self._all.fleet, self.name, "vitals"), VITALS, qos=0)

    def lose_power(self) -> None:
        """Lose the connection without the broker's knowing, and come back."""
        self.connection.fall_silent()
        self._silent.append(self.connection)
        self._down()
        self._redial()

    # --- what the connection tells

    def connected(self, connection: Connection, reason: int) -> None:
        """CONNACK."""
        if reason >= 0x80:
            self._all.counts[f"refused: {reason:#x}"] += 1
            connection.abort()
            return
        device = topics.device(self._all.fleet, self.name, "task")
        connection.subscribe([device, device.removesuffix("task") + "receipt"])

    def subscribed(self, connection: Connection) -> None:
        """SUBACK."""
        if connection is not self.connection or self.up.is_set():
            return  # of the weights
        self.up.set()
        self._attempt = 0
        self._all.subscribed_at = time.monotonic()
        birth = Birth(Session(self._all.boot, self._connections), software="simulated", models=("bench",))
        connection.publish(self._topic["state"], messages.encode(birth), retain=True)
        self.publish()
        self._all.changed.set()

    def received(self, connection: Connection, topic: str, payload: bytes) -> None:
        """A task, a receipt, or the weights."""
        if connection is not self.connection:
            return
        if topic == self._all.weights_topic:
            connection.unsubscribe(topic)
            if self.free:
                self._all.may_answer(self)
        elif topic.endswith("/receipt"):
            self._take_receipt(messages.decode_receipt(payload))
        else:
            self._take_task(messages.decode_task(payload))

    def acknowledged(self, connection: Connection, packet: int, reason: int) -> None:
        """PUBACK; only the receipt ends an update."""
        if connection is self.connection and packet == self._packet and reason == NO_MATCHING_SUBSCRIBERS:
            self._all.counts["unheard"] += 1
            self._repeat_in(UNHEARD_S * random.uniform(0.5, 1.0))

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        if connection is self.connection:
            self._all.counts["lost"] += 1
            self._down()
            self._redial()

    def _take_task(self, task: messages.Task) -> None:
        if self.pending is not None:
            if self.task is not None and self.task.task == task.task:
                if time.monotonic() - self._published_at >= UNHEARD_S:
                    self.publish()
                return
            self.pending = None
        known = self.task is not None and self.task.task == task.task
        self.task = task
        if known:
            return
        if self._all.fetches:
            self.connection.subscribe([self._all.weights_topic])
        else:
            self._all.may_answer(self)

    def _take_receipt(self, receipt: messages.Receipt) -> None:
        if self.pending is None or self.task is None or self.task.task != receipt.task:
            return
        now = time.monotonic()
        self._all.counts[receipt.outcome] += 1
        if receipt.outcome == "merged":
            self._all.waits.append(now - self._made_at)
        self.pending = self.task = None
        if self._again is not None:
            self._again.cancel()
        self._all.receipted_at = now
        self._all.changed.set()

    def _repeat_in(self, seconds: float) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(seconds, self._repeat)

    def _repeat(self) -> None:
        if self.pending is not None:
            self._all.counts["repeated"] += 1
            self.publish()

    def _down(self) -> None:
        self.up.clear()
        if self._again is not None:
            self._again.cancel()

    def _redial(self) -> None:
        self._dialling = asyncio.get_running_loop().create_task(self.dial())


async def run(settings: dict[str, Any]) -> None:
    """Obey standard input until it ends."""
    devices = Devices(settings)
    commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "connect": devices.connect,
        "pace": devices.set_pace,
        "vitals": devices.set_vitals,
        "idle": devices.idle,
        "storm": devices.storm,
        "count": devices.count,
    }
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    chores = [asyncio.create_task(one()) for one in (devices.keep_pace, devices.keep_vitals, devices.keep_alive)]
    while line := await reader.readline():
        asked = json.loads(line)
        print(json.dumps(await commands[asked.pop("do")](**asked)), flush=True)
    for chore in chores:
        chore.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="JSON written by benchmarks.deployment")
    asyncio.run(run(json.loads(parser.parse_args().settings.read_text())))
