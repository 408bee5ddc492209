"""`pollen devices` against a real server: what it prints, and one line for whatever goes wrong."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from server.web import devices_table
from tests.server.web.serving import ROOT, Serving, SimulatedFleet, free_port

NAMES = [f"pi-{number}" for number in range(1, 5)]
HOSTILE = "1.0\x1b[2J\r\n\u202eevil" + "x" * 200


def pollen_devices(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; from server.web.devices_command import main; raise SystemExit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Serving(tmp_path_factory.mktemp("devices")) as serving, SimulatedFleet(serving, NAMES) as fleet:
        for name in ("pi-2", "pi-2", "pi-3"):
            fleet.merge(name)
        fleet.birth("pi-4", software=HOSTILE, python="3.12.0")
        fleet.death("pi-1")
        serving.wait_for(lambda: not serving.api("/api/devices/pi-1")["online"], "the death")
        serving.wait_for(lambda: serving.api("/api/devices/pi-4")["software"] == HOSTILE, "the birth")
        time.sleep(1.1)  # /api/fleet may be a second old
        yield serving.url


def test_a_table_of_all_devices(url: str) -> None:
    done = pollen_devices("--server", url)
    assert (done.returncode, done.stderr) == (0, "")
    head, _, titles, *rows = done.stdout.splitlines()
    assert head == "fleet garden: 3 of 4 devices online, 0 blocked; weather at version 3"
    assert titles.split()[:3] == ["DEVICE", "STATE", "SEEN"]
    assert [row.split()[:2] for row in rows] == [
        ["pi-1", "offline"], ["pi-2", "online"], ["pi-3", "online"], ["pi-4", "online"],
    ]  # fmt: skip
    assert len({row.index("line") for row in rows}) <= 2
    assert all(sign.isprintable() for line in done.stdout.splitlines() for sign in line)
    assert max(map(len, rows)) < 160


def test_lines_of_json_in_the_order_that_was_asked_for(url: str) -> None:
    done = pollen_devices("--json", "--online", "--sort", "updates", POLLEN_SERVER_URL=url)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["name"], row["updates"]) for row in rows] == [("pi-2", 2), ("pi-3", 1), ("pi-4", 0)]
    assert rows[2]["software"] == HOSTILE


def test_some_devices_by_name_and_an_unknown_one(url: str) -> None:
    done = pollen_devices("pi-3", "pi", "pi-1", "--json", "--server", url)
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["pi-1", "pi-3"]
    assert done.returncode == 1
    assert done.stderr == "error: pi: this server knows no such device\n"


def test_watching_goes_on_in_a_pipe_and_ends_with_it(url: str) -> None:
    script = "import sys; from server.web.devices_command import main; raise SystemExit(main(sys.argv[1:]))"
    watching = subprocess.Popen(
        [sys.executable, "-c", script, "--watch", "0.5", "--server", url],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    heads = 0
    for line in watching.stdout:
        assert "\x1b" not in line
        heads += line.startswith("fleet garden")
        if heads == 3:
            break
    watching.stdout.close()
    assert watching.wait(20) == 0
    assert watching.stderr is not None
    assert watching.stderr.read() == ""


def test_every_way_to_order_works(url: str) -> None:
    for sort in devices_table.SORTS:
        done = pollen_devices("--sort", sort, "--server", url)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 7), done.stderr


def test_what_goes_wrong_is_one_line() -> None:
    def line(*words: str, code: int) -> str:
        done = pollen_devices(*words)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        return done.stderr.removeprefix("error: ").rstrip("\n")

    closed = f"http://127.0.0.1:{free_port()}"
    assert line("--server", closed, code=1) == (
        f"{closed}: nothing listens there; does pollen-server run, with port set in [http] of server.toml?"
    )
    assert "write http://HOST:PORT" in line("--server", "ftp://x", code=2)
    assert "--ca goes with https" in line("--server", closed, "--ca", "x.pem", code=2)
    assert "is no PEM file" in line("--server", "https://127.0.0.1:1", "--ca", __file__, code=2)
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0", "--directory", str(ROOT / "docs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None
            elsewhere = other.stdout.readline().split("port ")[1].split()[0]
            told = line("--server", f"127.0.0.1:{elsewhere}", code=1)
            assert told.endswith("HTTP status 404; is it a pollen-server with [http]?")
            assert "no TLS there" in line("--server", f"https://127.0.0.1:{elsewhere}", code=1)
        finally:
            other.terminate()


def test_it_starts_without_flower() -> None:
    script = "import sys, server.web.devices_command; print('flwr' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
