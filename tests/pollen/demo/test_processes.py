import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pollen.demo import processes
from pollen.demo.processes import Processes
from pollen.errors import PollenError

WaitUntil = Callable[..., Any]

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
# A demo that is killed: it starts a child through Processes, tells its id, and waits for the end.
KILLED_DEMO = """
import sys, time
from pathlib import Path
from pollen.demo.processes import Processes
with Processes() as processes:
    child = processes.start("child", "device", [sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]))
    print(child.process.pid, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_children_do_not_survive_an_exception_in_the_demo(tmp_path: Path) -> None:
    started = []

    def fail() -> None:
        with Processes() as group:
            started.append(group.start("child", "device", SLEEP, tmp_path / "log"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not is_running(started[0].process.pid)


def test_children_do_not_survive_a_kill_of_the_demo(tmp_path: Path, wait_until: WaitUntil) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_DEMO, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        pid = int(demo.stdout.readline())
        assert is_running(pid)
        demo.kill()
    wait_until(lambda: not is_running(pid), 10, "the child of a killed demo ends")


def test_a_child_that_ends_unasked_is_an_accident_and_one_that_was_stopped_is_none(tmp_path: Path) -> None:
    with Processes() as group:
        killed = group.start("killed", "device", SLEEP, tmp_path / "killed")
        ended = group.start("ended", "device", [sys.executable, "-c", "pass"], tmp_path / "ended")
        failed = group.start("failed", "device", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "failed")
        running = group.start("running", "device", SLEEP, tmp_path / "running")
        os.kill(killed.process.pid, signal.SIGKILL)
        for child in (killed, ended, failed):
            child.process.wait(10)
        assert group.accidents() == [killed, ended, failed]
        assert running.process.poll() is None


def test_a_child_that_ignores_sigterm_is_killed_and_named(tmp_path: Path, wait_until: WaitUntil) -> None:
    with Processes() as group:
        child = group.start("stubborn", "device", STUBBORN, tmp_path / "log")
        wait_until(lambda: child.last_line() == "ready", 10, "the child is ready")
        assert processes.stop([child], 0.2) == [child]
        assert not is_running(child.process.pid)


def test_memory_is_measured_and_its_peak_kept(tmp_path: Path, wait_until: WaitUntil) -> None:
    with Processes() as group:
        child = group.start("child", "server", STUBBORN, tmp_path / "log")
        wait_until(lambda: child.last_line() == "ready", 10, "the child is ready")
        group.measure()
        assert 1e6 < child.rss_bytes <= child.peak_rss_bytes < 1e9
        processes.stop([child], 0.1)
        group.measure()
        assert group.peak_rss() == {"server": child.peak_rss_bytes}


def test_a_program_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with Processes() as group, pytest.raises(PollenError, match="child: /nowhere/python can't be started"):
        group.start("child", "device", ["/nowhere/python"], tmp_path / "log")
