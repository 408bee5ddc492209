"""The history file while it is written, and the plots drawn from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen.errors import PollenError
from server.history import BURSTS_KEPT, AsyncHistory, Merge
from server.plots import draw, main, read


def merge(version: int, device: str = "pi-1", staleness: int = 0) -> Merge:
    metrics = {"prequential_error": 1.0 / version, "baseline_error": 0.8}
    return Merge(float(version), version, device, staleness, 10, 5, 0.5, 1.25, 1000, metrics)


def test_every_event_is_a_line_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "new" / "history.jsonl")
    history.add_event("start", 0)
    history.add_merges([merge(1), merge(2, "pi-2", 1)])
    history.add_rejection("pi-3", "not finite")
    history.add_evaluation(2, 0.25, {"accuracy": 0.9})
    lines = [json.loads(line) for line in (tmp_path / "new" / "history.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "merge", "merge", "rejection", "evaluation"]
    assert lines[2]["device"] == "pi-2"
    assert lines[2]["staleness"] == 1
    assert lines[3]["reason"] == "not finite"
    assert all(line["time"] > 1.7e9 for line in lines)
    assert history.losses_centralized == [(2, 0.25)]
    assert history.metrics_centralized == {"accuracy": [(2, 0.9)]}
    history.close()


def test_a_second_server_appends_to_the_first_ones_history(tmp_path: Path) -> None:
    for version in (1, 2):
        history = AsyncHistory(tmp_path / "history.jsonl")
        history.add_merges([merge(version)])
        history.close()
    assert [event["version"] for event in read(tmp_path / "history.jsonl")] == [1, 2]


def test_a_history_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    history = AsyncHistory(tmp_path / "file" / "history.jsonl")
    history.add_merges([merge(1)])
    history.add_merges([merge(2)])
    assert history.merged == 2


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_memory_is_bounded() -> None:
    history = AsyncHistory(None, keep=10)
    history.add_merges([merge(version) for version in range(1, 101)])
    assert len(history.merges) == 10
    assert history.merged == 100
    for version in range(100):
        history.add_evaluation(version, 0.5, {"mae": 1.0})
        history.add_rejection("pi-1", "not finite")
    assert [version for _, version, _, _ in history.evaluations] == list(range(90, 100))
    assert history.losses_centralized == [(version, 0.5) for version in range(90, 100)]
    assert history.metrics_centralized == {"mae": [(version, 1.0) for version in range(90, 100)]}
    assert len(history.rejections) == 10


def test_a_full_file_is_kept_once_and_the_plots_see_both(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl", limit_bytes=2000)
    for version in range(1, 101):
        history.add_merges([merge(version)])
    history.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["history.jsonl", "history.jsonl.1"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in files)
    versions = [line["version"] for name in reversed(files) for line in lines_of(tmp_path / name)]
    assert versions == list(range(versions[0], 101))
    assert 8 <= len(versions) < 30
    assert main([str(tmp_path)]) == 0


def test_a_file_that_is_full_when_the_server_starts_is_rotated_first(tmp_path: Path) -> None:
    for version in (1, 2):
        history = AsyncHistory(tmp_path / "history.jsonl", limit_bytes=400)
        history.add_merges([merge(version)])
        history.close()
    assert [line["version"] for line in lines_of(tmp_path / "history.jsonl.1")] == [1]
    assert [line["version"] for line in lines_of(tmp_path / "history.jsonl")] == [2]


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = AsyncHistory(path)
    history.add_merges([merge(1), merge(2)])
    history.close()
    path.write_text(path.read_text()[:-20])
    history = AsyncHistory(path)
    history.add_merges([merge(3)])
    history.close()
    assert [line["version"] for line in lines_of(path)] == [1, 3]


def test_numbers_that_are_not_finite_are_null_and_numpys_are_numbers(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    history.add_merges([Merge(0.0, 1, "pi-1", 0, 10, 5, 1.0, float("inf"), 1000)])
    history.add_evaluation(1, float("nan"), {"mae": np.float32(0.5), "worst": float("-inf"), "name": "x"})
    history.add_evaluation(2, 0.5, {"mae": 0.25})
    history.close()
    merged, evaluated, _ = lines_of(tmp_path / "history.jsonl")
    assert merged["delta_norm"] is None
    assert evaluated["loss"] is None
    assert evaluated["metrics"] == {"mae": 0.5, "worst": None, "name": "x"}
    text = (tmp_path / "history.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_score_that_was_not_finite_leaves_a_gap_in_the_plot(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    history.add_evaluation(1, float("nan"), {"mae": float("nan")})
    history.add_evaluation(2, 0.5, {"mae": 0.25})
    history.close()
    assert main([str(tmp_path)]) == 0


def test_a_flood_of_rejections_costs_ten_lines_a_second_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    clock = [0.0]
    monkeypatch.setattr(history, "elapsed_s", lambda: clock[0])
    for number in range(100):
        history.add_rejection("flood", f"reason {number}")
    history.add_rejection("other", "once")
    clock[0] = 1.5
    history.add_rejection("flood", "later")
    lines = lines_of(tmp_path / "history.jsonl")
    assert [line["device"] for line in lines] == ["flood"] * 10 + ["other", "flood"]
    assert [line["suppressed"] for line in lines] == [0] * 11 + [90]
    for number in range(20):
        history.add_rejection("flood", f"again {number}")
    history.close()
    last = lines_of(tmp_path / "history.jsonl")[-1]
    assert (last["reason"], last["suppressed"]) == ("again 19", 10)
    total = sum(1 + line["suppressed"] for line in lines_of(tmp_path / "history.jsonl") if line["device"] == "flood")
    assert total == 121


def test_devices_whose_rejections_are_counted_are_bounded(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    for _ in range(12):
        history.add_rejection("first", "x")
    for number in range(BURSTS_KEPT):
        history.add_rejection(f"pi-{number}", "x")
    lines = [line for line in lines_of(tmp_path / "history.jsonl") if line["device"] == "first"]
    assert sum(1 + line["suppressed"] for line in lines) == 12
    history.close()


def test_plots_are_drawn_from_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    history.add_merges([merge(version, f"pi-{version % 3}", version % 4) for version in range(1, 40)])
    history.add_evaluation(1, 0.5, {"accuracy": 0.5})
    history.add_evaluation(39, 0.25, {"accuracy": 0.9})
    history.close()
    assert main([str(tmp_path)]) == 0
    drawn = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.stem for path in drawn} == {
        "evaluation",
        "prequential_error",
        "staleness",
        "weight",
        "activity",
        "bytes",
    }
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    history.add_merges([merge(1), merge(2)])
    history.close()
    text = (tmp_path / "history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text(text[:-20])
    assert [event["version"] for event in read(tmp_path / "history.jsonl")] == [1]


def test_what_is_no_history_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello\nworld\n")
    assert main([str(tmp_path / "notes.txt")]) == 1
    assert "notes.txt: line 1 is no JSON" in capsys.readouterr().err
    assert main([str(tmp_path / "missing")]) == 1
    assert "missing: can't be read" in capsys.readouterr().err
    with pytest.raises(PollenError, match="neither merges nor evaluations"):
        draw([], tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\xff\xfe\x00binary\n",
        b"\xff\xfe",
        b"3\n4\n",
        b"{}\n",
        b'{"event": "merge", "time": "noon"}\n',
        b'{"event": "merge", "time": 1.0}\n',
        b'{"event": "evaluation", "time": 1.0, "loss": 1.0, "metrics": 7}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_any_other_file_is_one_line_and_exit_code_1(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.jsonl").write_bytes(content)
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = AsyncHistory(tmp_path / "history.jsonl")
    history.add_evaluation(1, 0.5, {})
    history.close()
    assert main([str(tmp_path), "-o", str(tmp_path / "history.jsonl" / "plots")]) == 1
    assert "give another folder with -o" in capsys.readouterr().err
