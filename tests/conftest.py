"""Fixtures every test may use: a real Mosquitto, and waiting for a condition with a deadline."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from pollen import mosquitto
from pollen.mosquitto import Account, Limits, Mosquitto

PROJECT = Path(__file__).parents[1]


class BrokerFactory(Protocol):
    def __call__(
        self,
        accounts: Sequence[Account],
        *,
        fleet: str = "test",
        port: int | None = None,
        limits: Limits | None = None,
    ) -> Mosquitto: ...


class WaitUntil(Protocol):
    def __call__(self, condition: Callable[[], Any], seconds: float, what: str) -> Any: ...


@pytest.fixture(scope="session")
def mosquitto_binary() -> Path:
    return mosquitto.ensure(PROJECT / ".cache" / "pollen", print)


@pytest.fixture
def broker(mosquitto_binary: Path, tmp_path: Path) -> Iterator[BrokerFactory]:
    """Starts brokers, each with its own folder and port; they are stopped after the test."""
    started: list[Mosquitto] = []

    def start(
        accounts: Sequence[Account],
        *,
        fleet: str = "test",
        port: int | None = None,
        limits: Limits | None = None,
    ) -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(started)}"
        started.append(Mosquitto(mosquitto_binary, folder, fleet=fleet, accounts=accounts, port=port, limits=limits))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def wait_until() -> WaitUntil:
    """`wait_until(condition, seconds, what)`: the condition's first true value, or a failure saying `what`."""

    def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() >= deadline:
                pytest.fail(f"not within {seconds:g} s: {what}")
            time.sleep(0.01)

    return wait
