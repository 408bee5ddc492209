import json
import math
from pathlib import Path
from typing import Any

import pytest

from pollen.demo import summary, table
from pollen.demo.history import Event, History


def merge(device: str, version: int, **more: Any) -> Event:
    event = {
        "event": "merge",
        "time": 1000.0 + version,
        "device": device,
        "version": version,
        "staleness": 0,
        "weight": 0.5,
        "metrics": {},
    }
    return event | more


def metrics(error: float, baseline: float) -> dict[str, float]:
    return {"prequential_error": error, "baseline_error": baseline}


def test_staleness_classes_double_and_leave_none_out() -> None:
    spread = summary.staleness([0, 0, 1, 3, 9])
    assert spread is not None
    assert spread.histogram == {"0": 2, "1": 1, "2-3": 1, "4-7": 0, "8-15": 1}
    assert (spread.median, spread.p90, spread.largest) == (1, 9, 9)


def test_the_90th_percentile_is_a_value_that_nine_in_ten_do_not_exceed() -> None:
    spread = summary.staleness(list(range(1, 11)))
    assert spread is not None
    assert spread.p90 == 9


def test_learning_compares_each_devices_first_and_last_update() -> None:
    merges = [
        merge("a", 1, metrics=metrics(2.0, 1.0)),
        merge("b", 2, metrics=metrics(4.0, 2.0)),
        merge("a", 3, metrics=metrics(9.0, 9.0)),
        merge("a", 4, metrics=metrics(0.5, 1.0)),
    ]
    learned = summary.learning(merges)
    assert learned is not None
    assert (learned.error_first, learned.baseline_first) == (3.0, 1.5)
    assert (learned.error_last, learned.baseline_last) == (2.25, 1.5)
    assert learned.ratio_first == 2.0
    assert learned.ratio_last == 1.5


def test_a_baseline_without_error_gives_no_ratio() -> None:
    learned = summary.learning([merge("a", 1, metrics=metrics(1.0, 0.0))])
    assert learned is not None
    assert math.isnan(learned.ratio_first)


def test_no_merges_give_no_distribution_and_no_learning() -> None:
    assert summary.staleness([]) is None
    assert summary.learning([]) is None


def test_the_cut_device_returns_with_its_first_merge_after_the_connection_is_back() -> None:
    merges = [merge("a", 1), merge("b", 2), merge("a", 8, staleness=6, weight=0.2), merge("a", 9, staleness=1)]
    story = summary.cut_story("a", 1002.0, 1005.0, 1000.0, merges)
    assert (story.cut_s, story.restored_s, story.merged_s) == (2.0, 5.0, 8.0)
    assert (story.staleness, story.weight, story.version) == (6, 0.2, 8)


def test_a_cut_device_that_was_not_merged_again_is_said_not_to_be() -> None:
    story = summary.cut_story("a", 1002.0, 1005.0, 1000.0, [merge("a", 1), merge("b", 9)])
    assert story.merged_s is None


def test_the_summary_adds_up_and_every_figure_is_in_its_lines() -> None:
    events: list[Event] = [
        {"event": "start", "version": 0},
        merge("a", 1, metrics=metrics(2.0, 1.0)),
        {"event": "evaluation", "version": 1, "loss": 1.5, "metrics": {"accuracy": 0.25}},
        merge("b", 2, staleness=1, metrics=metrics(1.0, 1.0)),
        {"event": "rejection", "device": "b", "reason": "too large"},
        {"event": "evaluation", "version": 2, "loss": 0.5, "metrics": {"accuracy": 0.75}},
    ]
    made = summary.summarise(
        events,
        seconds=4.0,
        vitals={"a": {"sent_bytes": 2000.0, "received_bytes": 3000.0}, "b": {}},
        peak_rss_bytes={"device": 55_000_000},
        cut=summary.CutStory("b", 1.0, 2.0, 2.5, 1, 0.5, 2),
    )
    assert (made.merges, made.updates_per_s, made.version) == (2, 0.5, 2)
    assert made.rejections == {"too large": 1}
    assert made.sent_bytes == {"a": 2000, "b": 0}
    text = "\n".join(table.summary_lines(made, "persistence"))
    for figure in (
        "2 updates merged in 4 s (0.50/s), 1 rejected; the model is at version 2",
        "0: 1, 1: 1",
        "start 1.500 against 1.000, ratio 1.50",
        "(against persistence,",
        "accuracy 0.250 to 0.750",
        "b at 1 s, back at 2 s; its update was merged at 2.5 s as version 2 with staleness 1, weight 0.500",
        "2 kB up, 3 kB down",
        "device 55 MB",
    ):
        assert figure in text


@pytest.mark.parametrize("restored", [None, 5.0])
def test_an_unfinished_cut_is_told_without_inventing_figures(restored: float | None) -> None:
    made = summary.summarise([], seconds=0, vitals={}, peak_rss_bytes={}, cut=summary.CutStory("a", 2.0, restored))
    text = "\n".join(table.summary_lines(made, "persistence"))
    assert ("never let back" if restored is None else "NO update of it was merged") in text


def test_a_history_is_read_line_by_line_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    assert history.read() == []
    first, second = json.dumps(merge("a", 1)), json.dumps(merge("a", 2))
    path.write_text(first + "\n" + second[:20])
    assert [event["version"] for event in history.read()] == [1]
    path.write_text(first + "\n" + second + "\n")
    assert [event["version"] for event in history.read()] == [2]
    assert len(list(history.of("merge"))) == 2
