"""The machine's clock, and who may look at it."""

import ast
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edge_client import clock
from edge_client.clock import SystemClock

PACKAGE = Path(clock.__file__).parent
WALL = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "datetime.now", "date.today"}


def test_the_kernels_answer_is_the_one_that_adjtimex_prints() -> None:
    """Debian's `adjtimex --print` and systemd's `timedatectl` read the same flag, STA_UNSYNC, of the same call."""
    try:
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no timedatectl that answers here")
    assert clock.kernel_synchronised() is (said == "yes")


def test_the_kernel_says_whether_the_clock_is_right() -> None:
    assert clock.kernel_synchronised() in (True, False)
    assert SystemClock().synchronised() is clock.kernel_synchronised()


def test_the_kernel_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    now = [5000.0]
    monkeypatch.setattr(clock, "kernel_synchronised", lambda: next(answers))
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    one = SystemClock()
    assert one.synchronised() is False
    now[0] += 59
    assert one.synchronised() is False
    now[0] += 1
    assert one.synchronised() is True


def test_without_the_call_nobody_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def __init__(self, _name: object) -> None: ...

    monkeypatch.setattr(clock.ctypes, "CDLL", Without)
    assert clock.kernel_synchronised() is None


def test_the_clock_runs_and_waits() -> None:
    one = SystemClock()
    started = one.monotonic()
    assert not one.wait(threading.Event(), 0.02)
    assert one.monotonic() - started >= 0.02
    assert one.wall() == pytest.approx(time.time(), abs=5)
    done = threading.Event()
    done.set()
    assert one.wait(done, -1)


def calls(path: Path) -> set[str]:
    """The attributes that are called without an argument, each by its last two names."""
    return {
        ".".join(ast.unparse(node.func).split(".")[-2:])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args
    }


def test_nothing_in_the_agent_but_its_clock_looks_at_the_wall_time() -> None:
    """The doctor's reports are about the machine's clock, and the agent doesn't load them."""
    looking = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if calls(path) & WALL}
    assert looking - {"local/doctor.py", "local/broker_check.py"} == {"clock.py"}
