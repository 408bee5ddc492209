"""The demo as a user starts it: real processes, a real broker, real training, for half a minute."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "pollen.demo.command"]
SECONDS = 90.0

pytestmark = pytest.mark.timeout(150)


class Demo:
    """One demo process in its own session, with everything that it said."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self.output = output
        self.said = output.with_suffix(".log")
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(
                [*DEMO, "--output", str(output), *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            raise AssertionError(f"the demo did not end within {SECONDS:g} s:\n{self.text()}") from None

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + SECONDS
        while words not in self.text():
            assert self.process.poll() is None, f"the demo ended before it said {words!r}:\n{self.text()}"
            assert time.monotonic() < deadline, f"the demo never said {words!r}:\n{self.text()}"
            time.sleep(0.1)

    @property
    def run(self) -> Path:
        (folder,) = self.output.iterdir()
        return folder

    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return loaded

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.run / "history.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "runs"
    yield folder
    left = processes_below(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "the demo left processes behind"


def processes_below(folder: Path) -> list[int]:
    """Processes with a path below `folder` in their command line: those that a demo started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in command:
                found.append(int(entry.name))
    return found


def process_of(folder: Path, settings: str) -> int:
    """The process that was started with the settings file `settings`."""
    for pid in processes_below(folder):
        if f"/{settings}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"no process runs with {settings}")


def test_a_fleet_learns_from_live_telemetry_and_the_cut_device_is_merged(output: Path) -> None:
    demo = Demo(output, "--minutes", "0.4", "--devices", "3")
    assert demo.wait() == 0, demo.text()
    assert "No update was lost." in demo.text()

    names = {path.name for path in demo.run.iterdir()}
    assert {"history.jsonl", "summary.json", "final.keras", "model.keras", "logs", "settings"} <= names
    assert list(demo.run.glob("**/*.png")), names
    logs = {path.stem for path in (demo.run / "logs").iterdir()}
    assert {"server", "gateway-1", "pi-01", "pi-02", "pi-03"} <= logs

    merges = demo.events("merge")
    summary = demo.summary()
    assert summary["merges"] == len(merges) >= 6
    assert {merge["device"] for merge in merges} == {"pi-01", "pi-02", "pi-03"}
    assert [merge["version"] for merge in merges] == list(range(1, len(merges) + 1))

    cut = summary["cut"]
    assert cut["device"] == "pi-03"
    assert cut["staleness"] >= 1
    assert cut["cut_s"] < cut["restored_s"] < cut["merged_s"]
    returned = next(merge for merge in merges if merge["version"] == cut["version"])
    assert returned["staleness"] == cut["staleness"]
    began = returned["time"] - cut["merged_s"]
    moments = [merge["time"] - began for merge in merges if merge["device"] == "pi-03"]
    assert not [moment for moment in moments if cut["cut_s"] + 0.5 < moment < cut["restored_s"]]

    assert set(summary["peak_rss_bytes"]) == {"broker", "server", "gateway", "device"}
    assert all(sent > 0 for sent in summary["sent_bytes"].values())
    assert is_a_keras_model_with_other_weights(demo.run)


def is_a_keras_model_with_other_weights(run: Path) -> bool:
    """Whether Keras loads final.keras, and its weights are no longer those that training started from."""
    script = (
        "import sys, keras, numpy as np\n"
        "first, last = (keras.models.load_model(path).get_weights() for path in sys.argv[1:])\n"
        "assert [w.shape for w in first] == [w.shape for w in last]\n"
        "assert all(np.isfinite(w).all() for w in last)\n"
        "assert any((a != b).any() for a, b in zip(first, last))\n"
    )
    files = [str(run / "model.keras"), str(run / "final.keras")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.is_zipfile(files[1])


def write_gestures(path: Path) -> None:
    """Three gestures as sines of three frequencies, by four people who each move differently strongly."""
    generator = np.random.default_rng(0)
    time_s = np.arange(32) / 32
    x, y, subject = [], [], []
    for person in range(4):
        for _ in range(150):
            gesture = int(generator.integers(3))
            phase = generator.uniform(0, 2 * np.pi)
            angle = 2 * np.pi * (1 + 2 * gesture) * time_s + phase
            wave = (1 + 0.2 * person) * np.stack([np.sin(angle), np.cos(angle)], axis=1)
            x.append(wave + generator.normal(0, 0.1, wave.shape))
            y.append(gesture)
            subject.append(f"person {person}")
    np.savez(path, X=np.array(x, np.float32), y=np.array(y), subject=np.array(subject))


def test_a_recording_is_replayed_and_the_held_out_accuracy_rises(output: Path, tmp_path: Path) -> None:
    data = tmp_path / "gestures.npz"
    write_gestures(data)
    demo = Demo(output, "--minutes", "0.4", "--devices", "3", "--data", str(data))
    assert demo.wait() == 0, demo.text()
    evaluations = demo.events("evaluation")
    first, last = evaluations[0]["metrics"]["accuracy"], evaluations[-1]["metrics"]["accuracy"]
    assert last > max(first, 0.5), demo.text()
    with np.load(demo.run / "data" / "holdout.npz", allow_pickle=False) as holdout:
        assert holdout["X"].shape[1:] == (32, 2)
        assert min(np.bincount(holdout["y"], minlength=3)) >= 4 * 5
    assert demo.summary()["cut"]["staleness"] >= 1


def test_a_killed_device_makes_the_demo_fail_and_say_who(output: Path) -> None:
    demo = Demo(output, "--minutes", "1", "--devices", "2", "--no-cut-device")
    demo.wait_for("merges ·")
    os.kill(process_of(output, "pi-02.toml"), signal.SIGKILL)
    assert demo.wait() == 1
    assert "error: pi-02 was killed by signal 9" in demo.text()


def test_ctrl_c_ends_the_demo_in_order(output: Path) -> None:
    demo = Demo(output, "--minutes", "5", "--devices", "2")
    deadline = time.monotonic() + SECONDS
    demo.wait_for("2 of 2 online")
    while " 0 merges" in demo.text().splitlines()[-1]:
        assert time.monotonic() < deadline, demo.text()
        time.sleep(0.2)
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.text()
    assert "No update was lost." in demo.text()
    assert demo.summary()["merges"] >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--devices", "1"], 2, "a fleet needs 2 devices"),
        (["--data", "nowhere.csv"], 2, "error: nowhere.csv: no such file"),
        (["--model", "nowhere.keras"], 1, "error: nowhere.keras: no such file"),
        (["--minutes", "0"], 2, "--minutes 0.0: from 0.1 to 1440"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(output: Path, arguments: list[str], code: int, says: str) -> None:
    output.parent.mkdir(exist_ok=True)
    demo = Demo(output, *arguments)
    assert demo.wait() == code
    assert says in demo.text().splitlines()[-1]
    assert "Traceback" not in demo.text()


def test_a_model_that_can_not_be_compiled_is_refused_with_the_layers_name(output: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.keras"
    script = (
        "import sys, keras\n"
        "layers = [keras.Input((8, 8)), keras.layers.LSTM(4, dropout=0.2, name='memory'), keras.layers.Dense(8)]\n"
        "keras.Sequential(layers).save(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True)
    demo = Demo(output, "--devices", "2", "--model", str(path))
    assert demo.wait() == 1
    last = demo.text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "'memory'" in last
