"""`pollen tail` on a real broker: what people and programs read of the messages that pass."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import shown_message
from pollen import messages
from pollen.messages import Birth, Death, Head, Receipt, Result, Session, Task, Update, Vitals
from pollen.mosquitto import Mosquitto
from tests.gateway.conftest import FLEET, PROJECT, Device

_POLLEN = "import sys; from pollen.command import main; sys.exit(main())"
SESSION = Session(b"12345678", 1)
UPDATE = Update(b"t" * 16, 7, 3, 64, 4, {"w": np.zeros((2, 3), np.float32)}, {"loss_before": 0.5, "loss_after": 0.25})


class Tail:
    """The command as a user runs it."""

    def __init__(self, config: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _POLLEN, "tail", "--config", str(config), *arguments],
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watch = threading.Timer(60, self.process.kill)
        self._watch.start()

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        return line.rstrip("\n")

    def end(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self.process.communicate(timeout=60)
        self._watch.cancel()
        return self.process.returncode, errors


@pytest.fixture
def config(mosquitto: Mosquitto, tmp_path: Path) -> Path:
    path = tmp_path / "observer.toml"
    path.write_text(
        f'fleet = "{FLEET}"\n[broker]\nport = {mosquitto.port}\n'
        'username = "observer-1"\npassword = "secret of observer-1"\n'
    )
    return path


@pytest.fixture
def tail(config: Path) -> Iterator[Callable[..., Tail]]:
    started: list[Tail] = []

    def start(*arguments: str) -> Tail:
        started.append(Tail(config, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.end()


def test_messages_are_shown_decoded_as_they_pass(tail: Callable[..., Tail], device: Callable[..., Device]) -> None:
    sender, other = device(), device("device-2")
    sender.publish("state", messages.encode(Birth(SESSION, software="0.1\x1b[2J", models=("weather",))), retain=True)
    shown = tail("--count", "4")
    assert "device-1         state    online: pollen 0.1\\x1b[2J on " in (line := shown.line())
    assert line.endswith("trains weather (retained)")
    sender.publish("update", messages.encode(UPDATE))
    assert "number 7, base 3, 64 samples, 4 steps, " in (line := shown.line())
    assert line.endswith("loss 0.5 to 0.25")
    other.publish("update", b"\xff no CBOR")
    assert "device-2         update   not readable: payload is not valid CBOR" in shown.line()
    sender.publish("vitals", messages.encode(Vitals({"temperature_celsius": 51.25})), qos=1)
    assert shown.line().endswith("vitals   temperature_celsius 51.25")
    assert shown.end() == (0, "")


def test_programs_get_one_object_a_line(tail: Callable[..., Tail], device: Callable[..., Device]) -> None:
    sender, other = device(), device("device-2")
    sender.publish("state", messages.encode(Birth(SESSION)), retain=True)
    shown = tail("device-1", "--json", "--only", "state,update", "--count", "2")
    assert json.loads(shown.line())["retained"] is True
    sender.publish("vitals", messages.encode(Vitals({})))
    other.publish("update", messages.encode(UPDATE))
    sender.publish("update", messages.encode(UPDATE))
    told = json.loads(shown.line())
    assert (told["name"], told["leaf"], told["topic"]) == ("device-1", "update", f"pollen/1/{FLEET}/d/device-1/update")
    assert told["message"]["task"] == (b"t" * 16).hex()
    assert told["message"]["delta"] == {"w": "float32[2, 3]"}
    assert shown.end() == (0, "")


def test_a_wrong_password_is_one_line_and_exit_code_1(config: Path) -> None:
    config.write_text(config.read_text().replace("secret", "guess"))
    code, errors = Tail(config).end()
    assert code == 1
    assert errors.startswith("error: broker at 127.0.0.1:")
    assert "refused the connection" in errors
    assert "guess" not in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("arguments", "told"), [(["--only", "gossip"], "no kind 'gossip'"), (["a/b"], "DEVICE")])
def test_wrong_usage_is_exit_code_2(tail: Callable[..., Tail], arguments: list[str], told: str) -> None:
    code, errors = tail(*arguments).end()
    assert (code, told in errors) == (2, True), errors


@pytest.mark.parametrize(
    ("leaf", "message", "text"),
    [
        ("state", Death(SESSION, "lost"), "offline: lost"),
        (
            "task",
            Task(b"t" * 16, "train", "weather", 3, b"b" * 32, {"epochs": 2}),
            "train weather from version 3, task ",
        ),
        (
            "receipt",
            Receipt(b"t" * 16, 1, "merged", 4, 0.5, 1),
            "merged: task 74747474, number 1, version 4, weight 0.5",
        ),
        ("receipt", Receipt(b"t" * 16, 1, "rejected", 4, reason="too old"), "rejected: "),
        ("result", Result(b"t" * 16, 5, {}, "no data"), "task 74747474, 5 samples, no data"),
        ("head", Head("weather", 9, b"d" * 32, b"b" * 32, 2_500_000, 0.0), "version 9, snapshot of 2.5 MB"),
        ("vitals", Vitals({f"v{n}": 1.0 for n in range(10)}), " and 2 more"),
    ],
)
def test_every_message_has_its_line(leaf: str, message: messages.Message, text: str) -> None:
    shown = shown_message.read("pi-1", leaf, messages.encode(message))
    assert text in shown.text
    json.dumps(shown.values, allow_nan=False)


@given(st.sampled_from(shown_message.LEAVES), st.binary(max_size=200))
def test_no_payload_stops_it(leaf: str, payload: bytes) -> None:
    shown = shown_message.read("pi-1", leaf, payload)
    assert shown.text
    json.dumps(shown.values)
