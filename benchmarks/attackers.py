"""One attack on a running deployment, in a process of its own; run by `benchmarks.hostile_load`.

Settings are a JSON file; the attack goes on until standard input ends, then one JSON line tells what was sent.

flood       `per_s` updates of `payload_bytes` a second on the attacker's own topic; the broker lets it no other
vitals      the same with vitals, QoS 0
loris       `connections` to each of `ports` that send the first bytes of `opening` one by one, a second apart
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.mqtt_connection import Connection
from pollen import messages, topics
from pollen.broker import Broker
from pollen.messages import Birth, Session, Update

TURN_S: Final = 0.01
MOST_WAITING: Final = 16 * 1024 * 1024  # bytes that the network has not taken; beyond, the flood is held back
REDIAL_S: Final = 0.2
OPENINGS: Final = {
    "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http": b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 100_000,
}


class Flooder:
    """A device with valid credentials that publishes far too much, and comes back when it is thrown out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self.sent = self.held_back = self.thrown_out = 0
        vitals = settings["attack"] == "vitals"
        leaf: topics.DeviceLeaf = "vitals" if vitals else "update"
        self._topic = topics.device(settings["fleet"], settings["name"], leaf)
        self._qos = 0 if vitals else 1
        # Well-formed, as far as anyone can tell who does not know the tasks.
        update = Update(os.urandom(16), 1, 1, 32, 1, {"t0": bytes(settings["payload_bytes"])})
        self._payload = messages.encode(update)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                connection = await self._connect()
                await asyncio.wait_for(self._up.wait(), 10.0)
                await self._flood(connection)
            except (OSError, TimeoutError):
                await asyncio.sleep(REDIAL_S)

    async def _connect(self) -> Connection:
        chosen = self._settings
        self._up.clear()
        self._lost.clear()
        connection = Connection(self, chosen["name"], chosen["password"])
        files = {key: Path(value) for key, value in (chosen["tls"] or {}).items()}
        tls = Broker(port=chosen["port"], **files).tls_context()  # type: ignore[arg-type]
        await asyncio.get_running_loop().create_connection(
            lambda: connection, "127.0.0.1", chosen["port"], ssl=tls, server_hostname="127.0.0.1" if tls else None
        )
        return connection

    async def _flood(self, connection: Connection) -> None:
        due = time.monotonic()
        while not self._lost.is_set():
            while due <= time.monotonic():
                due += 1 / self._settings["per_s"]
                if connection.waiting_bytes > MOST_WAITING:
                    self.held_back += 1
                else:
                    connection.publish(self._topic, self._payload, qos=self._qos)
                    self.sent += 1
            await asyncio.sleep(TURN_S)

    # --- what the connection tells

    def connected(self, connection: Connection, reason: int) -> None:
        """CONNACK: say that a device is here, so that it gets a task."""
        if reason < 0x80:
            birth = Birth(Session(os.urandom(8), 1), models=("bench",))
            state = topics.device(self._settings["fleet"], self._settings["name"], "state")
            connection.publish(state, messages.encode(birth), retain=True)
            self._up.set()

    def lost(self, connection: Connection) -> None:  # noqa: ARG002 - the owner's interface
        """Thrown out."""
        self.thrown_out += 1
        self._lost.set()

    def subscribed(self, connection: Connection) -> None:
        """Nothing is subscribed to."""

    def received(self, connection: Connection, topic: str, payload: bytes) -> None:
        """Nothing comes."""

    def acknowledged(self, connection: Connection, packet: int, reason: int) -> None:
        """Not waited for."""


class Loris:
    """Connections that begin a request and never finish it; a closed one is opened again."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self.sent = self.thrown_out = 0
        self.held_back = 0

    async def run(self) -> None:
        """Hold all connections until cancelled."""
        ports, each = self._settings["ports"], self._settings["connections"]
        await asyncio.gather(*[self._hold(port) for port in ports for _ in range(each)])

    async def _hold(self, port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                self.sent += 1
                await self._trickle(reader, writer)
                writer.close()
            self.thrown_out += 1
            await asyncio.sleep(REDIAL_S)

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opening = OPENINGS[self._settings["opening"]]
        for at in range(len(opening) - 1):
            writer.write(opening[at : at + 1])
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(1024), 1.0):
                    return


async def run(settings: dict[str, Any]) -> None:
    """Attack until standard input ends."""
    attacker = Loris(settings) if settings["attack"] == "loris" else Flooder(settings)
    started = time.monotonic()
    task = asyncio.create_task(attacker.run())
    await asyncio.to_thread(sys.stdin.read)
    task.cancel()
    seconds = time.monotonic() - started
    told = {
        "seconds": seconds,
        "sent": attacker.sent,
        "held_back": attacker.held_back,
        "thrown_out": attacker.thrown_out,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="JSON written by benchmarks.hostile_load")
    asyncio.run(run(json.loads(parser.parse_args().settings.read_text())))
