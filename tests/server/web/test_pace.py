"""The pace of requests: a flood waits, an honest client soon gets its turn, and who has gone takes nobody's."""

import asyncio
import socket
import time
import urllib.request

from starlette.types import Message, Receive, Scope, Send

from pollen.http_service import HttpService
from pollen.http_settings import Http
from server.web.pace import Pace

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def test_requests_whose_clients_have_gone_keep_nobody_waiting() -> None:
    """Three thousand of them would be half a minute at a hundred a second."""
    with HttpService(Pace(hello), Http()) as service:
        for _ in range(3000):
            with socket.create_connection(("127.0.0.1", service.port), timeout=10) as flood:
                flood.sendall(REQUEST)
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/", timeout=10) as answer:
            assert answer.read() == b"hello"


def test_no_more_than_the_pace_begin_and_in_order() -> None:
    begun: list[tuple[int, float]] = []

    async def application(scope: Scope, receive: Receive, _send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        begun.append((scope["number"], time.monotonic()))

    async def ask(pace: Pace, number: int) -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
        still_there = asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await still_there.wait()
            return {"type": "http.disconnect"}

        async def send(_message: Message) -> None:
            raise AssertionError

        await pace({"type": "http", "headers": [], "number": number}, receive, send)

    async def run() -> None:
        pace = Pace(application, per_second=50.0)
        await asyncio.gather(*[ask(pace, number) for number in range(60)])

    asyncio.run(run())
    assert [number for number, _ in begun] == list(range(60))
    assert begun[-1][1] - begun[0][1] >= (60 - 0.5 * 50 - 2) / 50
