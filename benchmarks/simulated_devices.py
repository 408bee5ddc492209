"""A hundred devices in one process, as cheap as can be: one MQTT connection each, one thread, no training.

They answer each task at once with an update of the asked size, so that what is measured is broker, gateway and server.
Run by end_to_end.py, not by hand.
"""

import argparse
import json
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from pollen import messages, topics
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.messages import Birth, Session, Update

MISC_S = 1.0  # how often keep-alives are looked after


class Device:
    """One connection that answers tasks; `seq` counts its updates, `receipts` those that were merged."""

    def __init__(self, name: str, settings: dict[str, Any], delta: dict[str, Any]) -> None:
        self.name = name
        self.seq = 0
        self.receipts = 0
        self.waits: list[float] = []
        self._fleet = settings["fleet"]
        self._delta = delta
        self._sent_at = 0.0
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self.client.username_pw_set(name, settings["password"])
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", settings["port"], 60, properties=properties)
        connection = self.client.socket()
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(topics.device(self._fleet, self.name, leaf), 1) for leaf in topics.TO_DEVICE])
        birth = messages.encode(Birth(Session(self.name.encode()[-8:].rjust(8), 1), software="simulated"))
        client.publish(topics.device(self._fleet, self.name, "state"), birth, qos=1, retain=True)

    def _on_message(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/receipt"):
            if messages.decode_receipt(message.payload).outcome == "merged":
                self.receipts += 1
                self.waits.append(time.monotonic() - self._sent_at)
            return
        task = messages.decode_task(message.payload)
        self.seq += 1
        update = Update(task.task, self.seq, task.version, 32, 4, self._delta, {"loss_after": 0.5})
        self._sent_at = time.monotonic()
        client.publish(topics.device(self._fleet, self.name, "update"), messages.encode(update), qos=1)


def run(settings: dict[str, Any]) -> None:
    """Answer tasks until standard input is closed; prints one JSON line with what was done."""
    bundle = Bundle.read(Path(settings["bundle"]))
    size = bundle.manifest.shared_size
    delta = np.random.default_rng(1).normal(0, 1e-4, size).astype(np.float32)
    wire: dict[str, Any] = dict(named(delta, bundle.manifest.shared))
    devices = [Device(name, settings, wire) for name in settings["devices"]]
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    interest: dict[int, int] = {}
    looked_after = 0.0
    while True:
        now = time.monotonic()
        for number, device in enumerate(devices):
            if now - looked_after >= MISC_S:
                device.client.loop_misc()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if device.client.want_write() else 0)
            if interest.get(number) != wanted:
                change = selector.modify if number in interest else selector.register
                change(device.client.socket(), wanted, device)
                interest[number] = wanted
        if now - looked_after >= MISC_S:
            looked_after = now
        for key, events in selector.select(MISC_S):
            if key.fileobj is sys.stdin:
                report(devices)
                return
            if events & selectors.EVENT_READ:
                key.data.client.loop_read()
            if events & selectors.EVENT_WRITE:
                key.data.client.loop_write()


def report(devices: list[Device]) -> None:
    """Print updates made and merged, and the time from publish to receipt in milliseconds."""
    waits = np.array([wait for device in devices for wait in device.waits]) * 1000
    percentiles = np.percentile(waits, [50, 99]) if len(waits) else [float("nan")] * 2
    print(
        json.dumps(
            {
                "updates": sum(device.seq for device in devices),
                "merged": sum(device.receipts for device in devices),
                "p50_ms": float(percentiles[0]),
                "p99_ms": float(percentiles[1]),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="JSON written by end_to_end.py")
    run(json.loads(parser.parse_args().settings.read_text()))
