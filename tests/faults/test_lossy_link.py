"""The bad line is as bad as it says: late, early, lost, doubled and out of order."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from socket import AF_INET, SOCK_DGRAM, socket

import numpy as np
import pytest

from tests.faults import network
from tests.faults.lossy_link import SILENT, Line, LossyLink
from tests.faults.network import Namespace

PACKETS = 600
# Answers each datagram there; says when it is ready.
ECHO = """
import socket, sys
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind((sys.argv[1], 7007))
print("ready", flush=True)
while True:
    here.sendto(*here.recvfrom(2048))
"""


@pytest.fixture
def far_end() -> Iterator[tuple[LossyLink, str]]:
    """A link and the address at its far end, where datagrams are answered."""
    if missing := network.missing():
        pytest.skip(f"no network namespaces: {missing}")
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace(9))
        link = stack.enter_context(LossyLink(namespace))
        command = [*namespace.enter, sys.executable, "-S", "-E", "-c", ECHO, namespace.there]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echo:
            stack.callback(echo.kill)
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            yield link, namespace.there
            echo.kill()


def answers(address: str, packets: int, quiet_s: float) -> list[tuple[int, float]]:
    """Send numbered datagrams 2 ms apart; (number, seconds until its answer) in the order in which answers come, until
    none has come for `quiet_s`."""
    found: list[tuple[int, float]] = []
    sent: list[float] = []
    with socket(AF_INET, SOCK_DGRAM) as here:
        here.settimeout(0.002)
        while True:
            if len(sent) < packets:
                here.sendto(len(sent).to_bytes(4, "big"), (address, 7007))
                sent.append(time.monotonic())
                heard = sent[-1]
            elif time.monotonic() - heard > quiet_s:
                return found
            try:
                number = int.from_bytes(here.recv(16), "big")
            except TimeoutError:
                continue
            heard = time.monotonic()
            found.append((number, heard - sent[number]))


def test_packets_are_late_lost_doubled_and_out_of_order(far_end: tuple[LossyLink, str]) -> None:
    link, address = far_end
    link.line = Line(delay_s=0.1, jitter_s=0.05, loss=0.1, duplicates=0.05)
    found = answers(address, PACKETS, quiet_s=1.0)
    late = np.array([seconds for _, seconds in found])
    assert 0.1 <= late.min() < 0.2
    assert 0.19 <= late.mean() < 0.35, "100 ms each way, and what a loaded machine adds"
    numbers = [number for number, _ in found]
    assert 0.71 < len(set(numbers)) / PACKETS < 0.91, "0.9² and some that were doubled before"
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)
    counts = link.take_counts()
    assert 0.06 < counts.lost / counts.packets < 0.14
    print(f"{late.min():.3f} to {late.max():.3f} s, mean {late.mean():.3f}; {counts}")


def test_some_packets_overtake_the_others(far_end: tuple[LossyLink, str]) -> None:
    link, address = far_end
    link.line = Line(delay_s=0.1, reordering=0.2)
    late = np.array([seconds for _, seconds in answers(address, PACKETS, quiet_s=1.0)])
    assert len(late) == PACKETS
    assert 0.01 < np.mean(late < 0.1) < 0.10, "hurried both ways: 0.2²"
    assert 0.2 < np.mean((late >= 0.1) & (late < 0.2)) < 0.45, "one way: 2 × 0.2 × 0.8"


def test_a_silent_line_says_nothing_at_all(far_end: tuple[LossyLink, str]) -> None:
    link, address = far_end
    link.line = SILENT
    assert answers(address, 20, quiet_s=0.5) == []
    assert link.take_counts().lost >= 20
