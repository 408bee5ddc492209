"""TLS to a real Mosquitto whose certificate is outside its dates, on a device whose clock may be wrong."""

import datetime
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_client.network.events import Connected, Lost
from edge_client.network.session import MqttSession
from edge_client.settings import EdgeSettings, Session
from pollen import messages
from pollen.broker import Broker
from pollen.errors import SettingsError
from tests.edge_client.authority import Authority
from tests.edge_client.clock import MovedClock

WaitUntil = Callable[..., Any]
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
VALID = (NOW - DAY, NOW + DAY)
EXPIRED = (NOW - 9 * DAY, NOW - 2 * DAY)
FUTURE = (NOW + 2 * DAY, NOW + 9 * DAY)


@pytest.fixture
def tls_broker(mosquitto_binary: Path, tmp_path: Path, wait_until: WaitUntil) -> Iterator[Callable[..., Broker]]:
    """`tls_broker(dates)`: a Mosquitto with a certificate valid in these dates, from an authority of the same."""
    started: list[subprocess.Popen[bytes]] = []

    def start(dates: tuple[datetime.datetime, datetime.datetime]) -> Broker:
        authority = Authority(tmp_path, dates)
        certificate, key = authority.issue("broker", dates)
        port = authority.free_port()
        configuration = tmp_path / "tls.conf"
        configuration.write_text(
            f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
            f"cafile {authority.ca}\ncertfile {certificate}\nkeyfile {key}\n"
        )
        started.append(subprocess.Popen([str(mosquitto_binary), "-c", str(configuration)], stderr=subprocess.DEVNULL))
        broker = Broker("127.0.0.1", port, ca=authority.ca)

        def answers() -> bool:
            try:
                broker.certificate_dates()
            except OSError:
                return False
            return True

        wait_until(answers, 20, "Mosquitto with TLS")
        return broker

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


class Connection:
    """A session of a device and what it has said so far."""

    def __init__(self, broker: Broker, clock: MovedClock) -> None:
        settings = EdgeSettings("pi-1", "test", "m", broker=broker, session=Session(1, 0, 0.01, 0.05))
        self._session = MqttSession(settings, b"bootboot", clock, threading.Event())
        self._session.start()
        self._events: list[object] = []

    def count(self, kind: type) -> int:
        self._events += self._session.events()
        return sum(isinstance(event, kind) for event in self._events)

    def stop(self) -> None:
        self._session.stop(b"", 5.0)


@pytest.fixture
def connect() -> Iterator[Callable[[Broker, MovedClock], Connection]]:
    started: list[Connection] = []

    def start(broker: Broker, clock: MovedClock) -> Connection:
        started.append(Connection(broker, clock))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.mark.parametrize("dates", [EXPIRED, FUTURE], ids=["expired", "not yet valid"])
def test_a_clock_known_to_be_wrong_doesnt_shut_the_device_out(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, dates: Any
) -> None:
    one = connect(tls_broker(dates), MovedClock(known=False))
    wait_until(lambda: one.count(Connected), 20, "a connection")


@pytest.mark.parametrize("known", [True, None])
@pytest.mark.parametrize("outside", [(EXPIRED, "has expired"), (FUTURE, "is not yet valid")])
def test_dates_count_otherwise_and_the_refusal_names_them_and_the_clock(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, caplog: Any, *, outside: Any, known: bool | None
) -> None:
    dates, words = outside
    one = connect(tls_broker(dates), MovedClock(known=known))
    wait_until(lambda: caplog.text.count(words) >= 2, 20, "the refusal, twice")
    assert one.count(Connected) == 0
    for moment in dates:
        assert f"{moment:%b} {moment.day:2} {moment:%H:%M:%S %Y}" in caplog.text
    said = re.findall(r"the clock here says (.+?) GMT", caplog.text)[-1]
    moment = datetime.datetime.strptime(said, "%b %d %H:%M:%S %Y").replace(tzinfo=datetime.UTC)
    assert abs(datetime.datetime.now(datetime.UTC) - moment) < datetime.timedelta(minutes=2)
    assert ("is synchronised: renew" if known else "may be wrong: renew") in caplog.text


def test_all_but_the_dates_is_checked_whatever_the_clock(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, caplog: Any, tmp_path: Path
) -> None:
    right = tls_broker(VALID)
    (tmp_path / "other").mkdir()
    impostor = Authority(tmp_path / "other", VALID)
    one = connect(Broker("127.0.0.1", right.port, ca=impostor.ca), MovedClock(known=False))
    wait_until(lambda: "its certificate is refused" in caplog.text, 20, "the refusal")
    misnamed = connect(Broker("localhost", right.port, ca=right.ca), MovedClock(known=False))
    wait_until(lambda: "Hostname mismatch" in caplog.text, 20, "the other refusal")
    assert one.count(Connected) == misnamed.count(Connected) == 0


def test_dates_are_checked_as_soon_as_the_clock_is_right(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, caplog: Any
) -> None:
    clock = MovedClock(known=False)
    one = connect(tls_broker(EXPIRED), clock)
    wait_until(lambda: one.count(Connected), 20, "a connection")
    clock.known = True
    wait_until(lambda: one.count(Lost), 20, "its end")
    wait_until(lambda: "certificate has expired" in caplog.text, 20, "the refusal")
    assert one.count(Connected) == 1


@pytest.mark.parametrize("known", [True, None])
def test_a_device_shut_out_by_that_check_is_known_to_be_gone(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, known: bool | None
) -> None:
    broker, clock = tls_broker(EXPIRED), MovedClock(known=False)
    states: list[bytes] = []
    listener = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    listener.tls_set_context(broker.tls_context(check_dates=False))
    listener.on_connect = lambda client, *_: client.subscribe("#", 1)
    listener.on_message = lambda _client, _userdata, message: states.append(message.payload)
    listener.connect(broker.host, broker.port)
    listener.loop_start()
    one = connect(broker, clock)
    wait_until(lambda: one.count(Connected), 20, "a connection")
    clock.known = known
    wait_until(lambda: states, 20, "the device's death")
    listener.disconnect()
    listener.loop_stop()
    death = messages.decode_state(states[0])
    assert isinstance(death, messages.Death)
    assert death.reason == "lost"


def test_a_good_certificate_comes_through_that_check(
    tls_broker: Any, connect: Any, wait_until: WaitUntil, caplog: Any
) -> None:
    clock = MovedClock(known=False)
    one = connect(tls_broker(VALID), clock)
    wait_until(lambda: one.count(Connected), 20, "a connection")
    clock.known = True
    wait_until(lambda: one.count(Connected) == 2, 20, "a second connection")
    assert "refused" not in caplog.text


def test_without_tls_there_are_no_dates_to_ask_for() -> None:
    with pytest.raises(SettingsError, match=r"broker\.ca"):
        Broker().certificate_dates()
    assert Broker().tls_context(check_dates=False) is None
