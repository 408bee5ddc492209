"""`pollen-server` as a program: what can go wrong around it is one line on stderr and exit code 1 or 2."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.server.gateway_client import bundle

ROOT = Path(__file__).parents[2]


def settings(folder: Path, text: str = "", state_dir: str = "state") -> Path:
    (folder / "m.bundle").write_bytes(bundle().to_bytes())
    path = folder / "server.toml"
    path.write_text(f'bundle = "m.bundle"\nstate_dir = "{state_dir}"\n[listen]\nport = 0\n{text}')
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "server.command", "--config", str(path)]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])} | more


def refusal(folder: Path, path: Path, code: int, **variables: str) -> str:
    """The one error line of a server that does not start."""
    done = subprocess.run(
        command(path),
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_state_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    line = refusal(tmp_path, settings(tmp_path), 2)
    assert f"state_dir = {tmp_path}/state: can't be made a folder" in line


def test_a_state_dir_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file/state: can't be made a folder" in refusal(tmp_path, settings(tmp_path, state_dir="file/state"), 2)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("x = (", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError('two\\nlines')", r"RuntimeError: two\nlines"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("", "AttributeError: "),
        ("score = 3", "is no function"),
    ],
)
def test_a_hook_that_cannot_be_imported_is_named_whatever_it_raises(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "my_hook.py").write_text(source)
    line = refusal(tmp_path, settings(tmp_path, '[evaluation]\nhook = "my_hook:score"\n'), 2)
    assert line.startswith("error: evaluation.hook = 'my_hook:score': ")
    assert says in line


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 2))}, "holds no array y"),
        ({"X": np.zeros((3, 2)), "y": np.zeros((3, 2))}, "y is float64 [3, 2], the model takes numbers of"),
        ({"X": np.full((3, 2), np.nan), "y": np.zeros(3)}, "x holds NaN or infinity"),
    ],
)
def test_held_out_data_that_can_not_be_scored_are_refused_at_the_start(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    np.savez(tmp_path / "heldout.npz", **arrays)
    assert says in refusal(tmp_path, settings(tmp_path, '[evaluation]\ndata = "heldout.npz"\n'), 2)


def test_a_variable_is_blamed_by_its_own_name(tmp_path: Path) -> None:
    path = settings(tmp_path)
    assert refusal(tmp_path, path, 2, POLLEN_LISTEN_PORT="x").startswith("error: POLLEN_LISTEN_PORT: listen.port = 'x'")
    assert refusal(tmp_path, path, 2, POLLEN_LISTEN_PROT="1").startswith("error: POLLEN_LISTEN_PROT: [listen] has no")


def start(folder: Path, path: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A server that listens, and the lines it wrote until then."""
    process = subprocess.Popen(
        command(path), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "listening for gateways" in line:
            return process, lines
    process.communicate(timeout=10)
    raise AssertionError("".join(lines))


def stopped(folder: Path, process: subprocess.Popen[str], code: int) -> str:
    """Let the server write its first state, stop it, and return what it said."""
    history = folder / "state" / "history.jsonl"
    deadline = time.monotonic() + 20
    while not history.exists() or '"start"' not in history.read_text():
        assert time.monotonic() < deadline, "the server did not start to merge"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return errors


def test_the_weights_are_written_when_the_server_stops(tmp_path: Path) -> None:
    process, _ = start(tmp_path, settings(tmp_path))
    assert "stopped at version 0" in stopped(tmp_path, process, 0)
    with np.load(tmp_path / "state" / "final.npz") as final:
        assert {name: final[name].shape for name in final} == {"t0": (3,), "t1": (2,)}


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "state" / "final.npz" / "in the way").mkdir(parents=True)
    process, _ = start(tmp_path, settings(tmp_path))
    errors = stopped(tmp_path, process, 1)
    assert errors.splitlines()[-1].startswith(f"error: {tmp_path}/state/final.npz: can't be written (")
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(tmp_path, settings(tmp_path), 1, POLLEN_LISTEN_PORT=str(port))
    assert f"127.0.0.1:{port}" in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(tmp_path, settings(tmp_path), 1, POLLEN_HTTP_PORT=str(port))
    assert line.startswith(f"error: http = 127.0.0.1:{port}: can't listen there")


def test_a_hook_that_returns_no_score_is_told_what_it_must_return() -> None:
    from pollen.errors import PollenError
    from server.command import _score

    assert _score(None) is None
    assert _score((np.float32(0.5), {"mae": 1.0})) == (0.5, {"mae": 1.0})
    for wrong in (0.5, ("x", {}), (0.5, 3), (1, 2, 3)):
        with pytest.raises(PollenError, match=r"evaluation\.hook must return"):
            _score(wrong)
