"""The history file while it is written, and the plots drawn from it."""

import json
from pathlib import Path

import pytest

from pollen.errors import PollenError
from server.history import AsyncHistory, Merge
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


def test_memory_is_bounded(tmp_path: Path) -> None:
    history = AsyncHistory(None, keep=10)
    history.add_merges([merge(version) for version in range(1, 101)])
    assert len(history.merges) == 10
    assert history.merged == 100


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
