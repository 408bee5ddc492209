"""Hostile HTTP against a real pollen-server: it gives away nothing, and honest clients still get their answers."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pollen import http_service
from server.web.pages import FOLDER
from server.web.security import HEADERS, MAX_TARGET_BYTES
from tests.server.web.serving import HOST, TOKEN, Serving, SimulatedFleet

FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".html")
DEVICE = "pi-1"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("http")) as one, SimulatedFleet(one, [DEVICE]) as fleet:
        fleet.merge(DEVICE)
        yield one


def said(serving: Serving, request: bytes, *, wait_s: float = 20.0) -> bytes:
    """All that comes back for raw bytes, until the server closes the connection or has nothing more to say."""
    answer = b""
    connected = socket.create_connection((HOST, serving.http_port), timeout=wait_s)
    with connected as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request)
        while got := connection.recv(65536):
            answer += got
    return answer


def head(target: bytes = b"/", *, method: bytes = b"GET", more: bytes = b"") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + more + b"\r\n"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.mark.parametrize(
    "path",
    ["/", f"/devices/{DEVICE}", "/page/fleet.js", "/api/fleet", "/metrics", "/nowhere", "/api/devices/nobody",
     "/api/events?after=x"],
)  # fmt: skip
def test_every_answer_carries_the_security_headers(serving: Serving, path: str) -> None:
    _, headers, _ = serving.ask(path)
    for name, value in HEADERS.items():
        assert headers.get_all(name) == [value], name
    assert headers["server"] is None
    assert not {name.lower() for name in headers} & {"set-cookie", "access-control-allow-origin", "etag"}


def test_every_file_of_the_pages_is_served_with_its_type_and_nothing_else_is(serving: Serving) -> None:
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    assert len(FILES) > 8
    for name in FILES:
        code, headers, body = serving.ask(f"/page/{name}")
        assert (code, headers["content-type"]) == (200, kinds[Path(name).suffix])
        assert body == (FOLDER / name).read_bytes()
    for path in ("/page/", "/page", "/page/nothing.js", "/static/", "/index.html.bak", "/page/../security.py"):
        assert serving.ask(path)[0] == 404, path


@pytest.mark.parametrize(
    "target",
    [
        b"/page/../../command.py", b"/page/..%2f..%2fcommand.py", b"/page/%2e%2e/security.py", b"//etc/passwd",
        b"/page/....//security.py", b"/page/%00fleet.js", b"/page/fleet.js%00.svg", b"/page/..\\security.py",
        b"/page//etc/passwd", b"/devices/../../etc/passwd/x", b"/\xff\xfe", b"/page/%ff%fe",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_pages(serving: Serving, target: bytes) -> None:
    answer = said(serving, head(target))
    assert status(answer) in (400, 404)
    assert b"import " not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "BREW"])
def test_other_methods_are_refused(serving: Serving, method: str) -> None:
    answer = said(serving, head(b"/api/fleet", method=method.encode()))
    assert status(answer) == 405
    assert b"allow: GET, HEAD, POST" in answer
    assert TOKEN.encode() not in answer


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{80}", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "localhost:80:80",
     "127.0.0.1, evil.example", "\xff"],
)  # fmt: skip
def test_a_host_that_is_not_ours_is_refused(serving: Serving, host: str) -> None:
    request = b"GET /api/fleet HTTP/1.1\r\nHost: " + host.encode("latin-1") + b"\r\nConnection: close\r\n\r\n"
    answer = said(serving, request)
    assert status(answer) in (400, 421)
    assert b"gateways" not in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1234", "[::1]", "[::1]:7080"])
def test_our_own_names_are_let_in(serving: Serving, host: str) -> None:
    request = f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert status(said(serving, request.encode())) == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /api/fleet HTTP/1.1\r\n\r\n",
        b"GET /api/fleet HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/api/fleet HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /api/fleet\r\n\r\n",
        b"GET /api/fleet HTTP/1.1\nHost : localhost\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"\r\n" * 20_000,
    ],
    ids=["no host", "two hosts", "proxy", "TLS", "HTTP/0.9", "space", "length", "zero byte", "empty lines"],
)
def test_what_is_no_request_to_us_is_refused(serving: Serving, request_: bytes) -> None:
    answer = said(serving, request_)
    assert status(answer) in (0, 400, 421, 431)
    assert b"gateways" not in answer


def test_a_body_is_refused_unread(serving: Serving) -> None:
    block = f"/api/devices/{DEVICE}/block".encode()
    for more in (b"Content-Length: 1000000000\r\n", b"Transfer-Encoding: chunked\r\n"):
        bearer = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
        for method, target in ((b"POST", block), (b"GET", b"/api/fleet")):
            assert status(said(serving, head(target, method=method, more=bearer + more))) == 413
    assert not serving.api(f"/api/devices/{DEVICE}")["blocked"]


def test_addresses_and_headers_have_limits(serving: Serving) -> None:
    assert status(said(serving, head(b"/" + b"a" * MAX_TARGET_BYTES))) == 414
    assert status(said(serving, head(b"/api/devices?q=" + b"a" * MAX_TARGET_BYTES))) == 414
    assert status(said(serving, head(b"/" + b"a" * 1_000_000))) in (0, 400)
    assert status(said(serving, head(more=b"X: " + b"y" * 1_000_000 + b"\r\n"))) in (0, 400)
    assert status(said(serving, head(more=b"X: y\r\n" * 20_000))) in (0, 400, 431)


def test_a_range_gets_the_whole_and_head_no_body(serving: Serving) -> None:
    ranges = "bytes=" + ",".join(f"{i}-{i}" for i in range(500))
    code, headers, body = serving.ask("/page/style.css", headers={"Range": ranges})
    assert (code, headers["content-range"], len(body)) == (200, None, (FOLDER / "style.css").stat().st_size)
    code, headers, body = serving.ask("/page/style.css", "HEAD")
    assert (code, int(headers["content-length"]), body) == (200, (FOLDER / "style.css").stat().st_size, b"")


def test_pipelined_requests_are_answered_in_order(serving: Serving) -> None:
    one = b"GET /page/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = said(serving, one * 20 + head(b"/readyz"))
    assert answer.count(b"HTTP/1.1 200 OK") == 21
    assert answer.rstrip().endswith(b"}")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer " + TOKEN[:-1]}, 401),
        ({"Authorization": "Basic " + TOKEN}, 401),
        ({"Authorization": "Bearer \xff\xfe"}, 401),
        ({"Cookie": f"token={TOKEN}"}, 401),
        ({"Origin": "https://evil.example"}, 401),
    ],
)
def test_blocking_takes_the_token_in_its_header_only(serving: Serving, headers: dict[str, str], code: int) -> None:
    path = f"/api/devices/{DEVICE}/block"
    assert serving.ask(path, "POST", headers)[0] == code
    assert serving.ask(f"{path}?token={TOKEN}", "POST", headers)[0] == code
    assert serving.ask(path, "GET", {"Authorization": f"Bearer {TOKEN}"})[0] in (404, 405)
    assert not serving.api(f"/api/devices/{DEVICE}")["blocked"]
    assert TOKEN not in serving.log


def test_no_page_elsewhere_may_ask_with_the_token(serving: Serving) -> None:
    """A browser asks before it sends Authorization from another origin, and is told nothing that would let it."""
    asked = b"Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    answer = said(serving, head(f"/api/devices/{DEVICE}/block".encode(), method=b"OPTIONS", more=asked))
    assert status(answer) == 405
    assert b"access-control" not in answer.lower()


def test_an_honest_client_is_answered_while_others_hold_every_connection(serving: Serving) -> None:
    """Slow loris in all its kinds at once: silent, in the header, in the body, and one that never reads."""
    kinds = [
        b"",
        b"GET /api/fleet HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /api/devices/pi-1/block HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
        b"GET /page/fleet_map.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
    ]
    with contextlib.ExitStack() as stack:
        for i in range(3 * http_service.MAX_CONNECTIONS):
            slow = stack.enter_context(socket.create_connection((HOST, serving.http_port), timeout=20))
            with contextlib.suppress(OSError):
                slow.sendall(kinds[i % len(kinds)])
        for path in ("/readyz", "/api/fleet", "/", "/metrics"):
            began = time.monotonic()
            assert serving.ask(path)[0] == 200
            assert time.monotonic() - began < http_service.REQUEST_S, path
    assert serving.api("/api/fleet")["devices"]["online"] == 1


def test_no_line_of_the_log_is_written_for_what_anyone_may_send(serving: Serving) -> None:
    before = len(serving.log)
    for request in (b"nonsense\r\n\r\n", head(b"/nowhere"), head(b"/", method=b"PUT"), head(b"/page/%2e%2e/x")):
        said(serving, request)
    assert "nonsense" not in serving.log
    assert "Invalid HTTP" not in serving.log
    assert "Traceback" not in serving.log[before:]


def test_tls_to_a_plain_port_is_no_harm(serving: Serving) -> None:
    context = ssl.create_default_context()
    with socket.create_connection((HOST, serving.http_port), timeout=20) as plain, pytest.raises(OSError):  # noqa: PT011
        context.wrap_socket(plain, server_hostname="localhost")
    assert serving.ask("/readyz")[0] == 200
