"""Leaving: also while the broker has not answered yet."""

import socket
import threading
import time
from pathlib import Path

from edge_client.clock import SystemClock
from edge_client.network.session import CONNACK_S, MqttSession
from edge_client.settings import EdgeSettings
from pollen.broker import Broker


def test_a_session_whose_broker_says_nothing_ends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = EdgeSettings("pi-1", "test", "telemetry", Path("state"), Broker(port=mute.getsockname()[1]))
        session = MqttSession(settings, bytes(8), SystemClock(), threading.Event())
        session.start()
        connection, _ = mute.accept()
        with connection:
            assert connection.recv(1)  # CONNECT
            started = time.monotonic()
            session.stop(b"death", 4 * CONNACK_S)
    assert time.monotonic() - started < CONNACK_S - 5
