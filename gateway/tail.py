"""`pollen tail`: a fleet's messages as they pass, decoded; what `mosquitto_sub` is for MQTT."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway import shown_message
from pollen import logs, settings, topics
from pollen.broker import Broker
from pollen.errors import PollenError
from pollen.identity import check_name, is_name

EXAMPLES = """\
examples:
  pollen tail --config observer.toml                         # everything but models
  pollen tail --config observer.toml pi-03 pi-04             # two devices, and the heads of models
  pollen tail --config observer.toml --only update,receipt
  pollen tail --config observer.toml --only state --count 20 --json

observer.toml is like a gateway's settings file, with an account that may read the whole fleet; it must be an account
of its own, since brokers end a client's older connection:
  fleet = "garden"
  [broker]
  host = "broker.example"
  port = 8883
  ca = "ca.pem"
  certificate = "ops.pem"
  key = "ops.key"
"""
_LARGE: Final = ("weights", "bundle", "infer")
_REFUSED: Final = 0x80


@dataclass(frozen=True, slots=True)
class Observer:
    """The settings file of `pollen tail`."""

    fleet: str
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet")


@dataclass(slots=True)
class _Tail:
    """One connection, and what came over it: `refusal` says why it ended when that was not asked for."""

    observer: Observer
    leaves: Sequence[str]
    devices: Sequence[str]
    as_json: bool
    most: int
    out: TextIO
    shown: int = 0
    refusal: str = ""

    def run(self) -> None:
        """Show messages until `most` were shown or the connection is refused."""
        broker = self.observer.broker
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.username,
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        if (context := broker.tls_context()) is not None:
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        address = f"broker at {broker.host}:{broker.port}"
        try:
            client.connect(broker.host, broker.port, broker.keepalive_s)
        except (OSError, ValueError) as error:
            raise PollenError(f"{address} is not reachable: {error}") from error
        client.loop_forever()
        if self.refusal:
            raise PollenError(f"{address}: {self.refusal}")

    def _on_connect(
        self, client: Client, _userdata: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._end(client, f"refused the connection: {reason}; check [broker]'s account or certificate")
            return
        fleet = self.observer.fleet
        devices = self.devices or ("+",)
        filters = [topics.device(fleet, name, leaf) for name in devices for leaf in self._of(topics.DeviceLeaf)]
        filters += [topics.model(fleet, "+", leaf) for leaf in self._of(topics.ModelLeaf)]
        # QoS 0: the broker shall queue nothing for someone who only looks.
        client.subscribe([(name, 0) for name in filters])

    def _of(self, kind: Any) -> list[Any]:
        return [leaf for leaf in kind.__args__ if leaf in self.leaves]

    def _on_subscribe(self, client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.value >= _REFUSED]
        if refused:
            self._end(client, f"refused a subscription: {refused[0]}; the account must be an observer's")

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure and not self.refusal:
            sys.stderr.write(f"connection lost: {reason}; connecting again\n")

    def _on_message(self, client: Client, _userdata: Any, message: MQTTMessage) -> None:
        owner, leaf = message.topic.split("/")[-2:]
        if self.shown >= self.most or not is_name(owner):
            return
        shown = shown_message.read(owner, leaf, bytes(message.payload))
        now = time.time()
        if self.as_json:
            told = {"time": now, "topic": message.topic, "retained": bool(message.retain), **shown.values}
            line = json.dumps(told)
        else:
            moment = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
            kept = " (retained)" if message.retain else ""
            line = logs.one_line(f"{moment}  {owner:<16} {leaf:<8} {shown.text}{kept}")
        try:
            self.out.write(line + "\n")
            self.out.flush()
        except BrokenPipeError:
            self._end(client, "")
            return
        self.shown += 1
        if self.shown >= self.most:
            self._end(client, "")

    def _end(self, client: Client, refusal: str) -> None:
        self.refusal = refusal
        client.disconnect()


def main(argv: list[str]) -> int:
    """Run `pollen tail` until Ctrl-C or `--count`; returns 0. Raises PollenError, SettingsError."""
    options = _parser().parse_args(argv)
    for name in options.device:
        check_name(name, "DEVICE")
    tail = _Tail(
        settings.load(Observer, options.config),
        leaves=options.only,
        devices=options.device,
        as_json=options.json,
        most=options.count or sys.maxsize,
        out=sys.stdout,
    )
    try:
        tail.run()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    return 0


def _leaves(text: str) -> list[str]:
    chosen = [leaf.strip() for leaf in text.split(",")]
    for leaf in chosen:
        if leaf not in shown_message.LEAVES:
            raise argparse.ArgumentTypeError(f"no kind {leaf!r}; known: {', '.join(shown_message.LEAVES)}")
    return chosen


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen tail",
        description="Show a fleet's messages as they pass through the broker, decoded.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", nargs="*", metavar="DEVICE", help="only these devices (and models)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="fleet and broker (TOML), or POLLEN_* variables")
    parser.add_argument(
        "--only",
        type=_leaves,
        default=[leaf for leaf in shown_message.LEAVES if leaf not in _LARGE],
        metavar="KIND,…",
        help=f"of {', '.join(shown_message.LEAVES)}; by default all but {', '.join(_LARGE)}",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--count", type=_count, metavar="N", help="end after N messages")
    return parser
