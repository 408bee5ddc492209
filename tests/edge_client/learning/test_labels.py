"""Labels by time: what messages say, and which windows they reach."""

import json
from typing import Any

import numpy as np
import pytest

from edge_client.learning.labels import EVENTS, LabelEvent, LateLabels, parse
from edge_client.learning.windowing import Window
from edge_client.sensors.sampling import Sample
from edge_client.settings import Labels
from pollen.errors import MessageError

TOPIC = Labels(source="topic", topic="button", classes=("rest", "walk", "run"), wait_s=60.0, waiting=20, span_s=10.0)


def sample(monotonic: float, *, wall: float = 0.0, synchronised: bool = False) -> Sample:
    return Sample(0, monotonic, wall, np.zeros((1, 1), np.float32), None, synchronised)


def window(at: float) -> Window:
    return Window(np.zeros(1), np.zeros(1, np.float32), sample(at), None)


def waiting(*times: float, settings: Labels = TOPIC, **reading: Any) -> LateLabels:
    late = LateLabels(settings)
    for at in times:
        late.saw(sample(at, **reading))
        late.wait(window(at))
    return late


def times(windows: list[Window]) -> list[float]:
    return [window.reading.monotonic for window in windows]


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (b"2", LabelEvent(2.0, 90.0, 100.0)),
        (b" walk\n", LabelEvent(1.0, 90.0, 100.0)),
        (b"-1.5e3", LabelEvent(-1500.0, 90.0, 100.0)),
        (b'{"label": "run"}', LabelEvent(2.0, 90.0, 100.0)),
        (b'{"label": 1, "age_s": 30}', LabelEvent(1.0, 60.0, 70.0)),
        (b'{"label": 1, "age_s": 30, "span_s": 5}', LabelEvent(1.0, 65.0, 70.0)),
        (b'{"label": 1, "from": 1000, "to": 1000.5}', LabelEvent(1.0, 1000.0, 1000.5, wall=True)),
    ],
)
def test_what_a_message_says(payload: bytes, event: LabelEvent) -> None:
    assert parse(payload, 100.0, TOPIC) == event


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"sleep",
        b"nan",
        b"inf",
        b"1e400",
        b"\xff\xfe",
        b"{",
        b"[1]",
        b"{}",
        b'{"label": null}',
        b'{"label": true}',
        b'{"label": [1]}',
        b'{"label": {"a": 1}}',
        b'{"label": NaN}',
        b'{"label": 1, "age_s": -1}',
        b'{"label": 1, "age_s": "3"}',
        b'{"label": 1, "age_s": null}',
        b'{"label": 1, "age_s": 1e9}',
        b'{"label": 1, "span_s": NaN}',
        b'{"label": 1, "from": 5}',
        b'{"label": 1, "from": 5, "to": 4}',
        b'{"label": 1, "from": 0, "to": 1e10}',
        b'{"label": 1, "from": 5, "to": 1e300}',
        b'{"label": ' + b"9" * 900 + b"}",
        b'{"label": ' + b"[" * 1000,
        b"1" * 2000,
        b'{"label": 1, "from": true, "to": 5}',
    ],
)
def test_what_is_no_label_is_refused(payload: bytes) -> None:
    with pytest.raises(MessageError, match="label: "):
        parse(payload, 100.0, TOPIC)


def test_the_error_names_the_classes_there_are() -> None:
    with pytest.raises(MessageError, match="'sleep' is no number, nor one of rest, walk, run"):
        parse(b"sleep", 0.0, TOPIC)


def test_any_bytes_give_a_label_or_a_refusal() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4)
    maps = st.dictionaries(st.sampled_from(["label", "age_s", "span_s", "from", "to"]), values).map(json.dumps)

    @hypothesis.given(st.binary(max_size=1100) | maps.map(str.encode))  # type: ignore[untyped-decorator]
    @hypothesis.settings(max_examples=500, deadline=None)  # type: ignore[untyped-decorator]
    def check(payload: bytes) -> None:
        try:
            event = parse(payload, 1e5, TOPIC)
        except MessageError:
            return
        assert abs(event.label) <= 1e30
        assert event.first <= event.last

    check()


def test_a_label_reaches_the_windows_of_its_time() -> None:
    late = waiting(1, 2, 3, 4, 5)
    assert times(late.labelled(LabelEvent(0, 2.0, 4.0))) == [2, 3, 4]
    assert times(late.labelled(LabelEvent(0, 0.0, 4.5))) == [1]
    assert late.labelled(LabelEvent(0, 2.0, 4.0)) == []
    assert len(late) == 1


def test_labels_out_of_order_reach_their_windows() -> None:
    late = waiting(1, 2, 3, 4)
    assert times(late.labelled(LabelEvent(0, 4.0, 4.0))) == [4]
    assert times(late.labelled(LabelEvent(0, 1.0, 2.0))) == [1, 2]


def test_a_window_waits_no_longer_than_it_was_told() -> None:
    late = waiting(0, 1, 2)
    late.saw(sample(61.5))
    assert (len(late), late.missed) == (1, 2)


def test_the_oldest_window_goes_when_too_many_wait() -> None:
    late = waiting(*range(30))
    assert (len(late), late.missed) == (20, 10)
    assert times(late.labelled(LabelEvent(0, 0.0, 11.0))) == [10, 11]


def test_windows_wait_for_a_topic_as_long_as_a_press_reaches_back() -> None:
    late = waiting(0, 5, settings=Labels(source="topic", topic="button", span_s=10.0))
    assert times(late.labelled(parse(b"1", 10.0, TOPIC))) == [0, 5]


def test_without_waiting_a_window_without_a_label_is_missed() -> None:
    late = waiting(0, 1, settings=Labels())
    assert (len(late), late.missed) == (0, 2)


def test_a_label_that_came_first_reaches_the_windows_that_follow() -> None:
    late = waiting(0)
    late.labelled(LabelEvent(1, 0.0, 5.0))
    late.labelled(LabelEvent(2, 3.0, 4.0))
    found = {}
    for at in (2.0, 3.5, 5.0, 6.0):
        late.saw(sample(at))
        found[at] = late.label_of(sample(at))
    assert found == {2.0: 1, 3.5: 2, 5.0: 1, 6.0: None}, "of several the one sent last"


def test_a_flood_of_labels_stays_bounded() -> None:
    late = waiting(0)
    for index in range(10 * EVENTS):
        late.labelled(LabelEvent(index, 1.0, 1e5))
    late.saw(sample(2.0))
    assert late.label_of(sample(2.0)) == 10 * EVENTS - 1
    assert len(late._events) == EVENTS


def test_wall_times_count_by_a_sample_that_has_both() -> None:
    late = waiting(100, 101, 102, wall=0.0)
    assert late.placed(LabelEvent(0, 5101.0, 5102.0, wall=True)) is None
    assert late.refused == 1
    late.saw(sample(103.0, wall=5103.0, synchronised=True))
    placed = late.placed(LabelEvent(7, 5101.0, 5102.0, wall=True))
    assert placed == LabelEvent(7, 101.0, 102.0)
    assert times(late.labelled(placed)) == [101, 102]


def test_wall_times_are_refused_again_when_the_clock_is_lost() -> None:
    late = LateLabels(TOPIC)
    late.saw(sample(1.0, wall=1001.0, synchronised=True))
    late.saw(sample(2.0, wall=1002.0, synchronised=False))
    assert late.placed(LabelEvent(0, 1001.0, 1002.0, wall=True)) is None
