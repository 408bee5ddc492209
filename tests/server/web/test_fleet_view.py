"""The view of the fleet keeps within its bounds, whatever comes, and from however many threads."""

import logging
import threading
import time
from typing import get_args

import pytest

from pollen.messages import Birth, Session, Vitals, encode
from server.bridge_service import Stream
from server.devices import DeviceCounts
from server.guard import Kind
from server.history import Merge
from server.web.device_record import MERGES_KEPT, REJECTIONS_KEPT, TRENDS_KEPT
from server.web.fleet_view import EVENTS_KEPT, FleetView
from server.web.metrics import Metrics
from server.web.rings import Averages, Curve, PerMinute, Ring
from server.web.vitals_inbox import LIMIT_BYTES, VitalsInbox

BIRTH = Birth(Session(b"12345678", 1), software="1")


def merge(device: str, version: int = 1) -> Merge:
    return Merge(0.0, version, device, 2, 10, 5, 0.5, 1.0, 100, loss_before=0.5, base=version - 3)


def test_a_ring_keeps_the_newest_rows() -> None:
    ring = Ring(3, "a", "b")
    for number in range(5):
        ring.add(100 + number, number, None)
    assert ring.columns() == {"time": [102, 103, 104], "a": [2.0, 3.0, 4.0], "b": [None] * 3}
    ring.add(-5.0, 1e300, float("nan"))
    assert ring.columns() == {"time": [103, 104, 0], "a": [3.0, 4.0, None], "b": [None] * 3}


def test_a_curve_keeps_its_ends_and_gets_coarser() -> None:
    curve = Curve(8)
    for number in range(1000):
        curve.add({"n": number})
        assert len(curve.rows()) <= 8
        assert curve.rows()[-1] == {"n": number}
    numbers = [row["n"] for row in curve.rows()]
    assert numbers == sorted(set(numbers), key=lambda n: int(str(n)))


def test_averages_keep_the_whole_time_in_few_spans() -> None:
    averages = Averages(16, seconds=1.0)
    for second in range(1000):
        averages.add(float(second), 2.0 if second % 2 else 4.0)
        assert len(averages.rows()) <= 16
    rows = averages.rows()
    assert rows[0][0] < 64
    assert all(mean == pytest.approx(3.0, abs=0.2) for _, mean in rows)
    averages.add(5.0, 3.0)  # a clock that went back
    assert len(averages.rows()) <= 16


def test_the_rate_is_of_the_last_minute() -> None:
    minute = PerMinute()
    minute.add(1000.0, 600)
    assert minute.per_second(1001.0, since=0.0) == 10.0
    assert minute.per_second(1001.0, since=991.0) == 60.0
    assert minute.per_second(1061.0, since=0.0) == 0.0


def test_one_device_stays_within_its_bounds() -> None:
    view = FleetView()
    for number in range(1000):
        view.merged("m", [merge("pi-1", number)])
        view.rejected("m", "pi-1", "r" * 10_000, "norm", told=True)
        view.measured("pi-1", {"prequential_error": number})
    told = view.device("pi-1", {"m": 1234}, blocked=False)
    assert told is not None
    assert {len(column) for column in told["history"].values()} == {MERGES_KEPT}
    assert {len(column) for column in told["trends"].values()} == {TRENDS_KEPT}
    assert len(told["rejections"]) == REJECTIONS_KEPT
    assert len(told["rejections"][0]["reason"]) <= 300
    assert (told["version"], told["behind"], told["updates"], told["rejected"]) == (996, 235, 1000, 1000)
    assert len(view.events(0, 10**6)[1]) == EVENTS_KEPT


def test_beyond_the_bound_the_longest_silent_offline_device_is_forgotten() -> None:
    view = FleetView(most=3)
    view.noted("b", BIRTH, online=True)
    view.noted("c", BIRTH, online=False)
    view.noted("a", BIRTH, online=False)
    view.merged("m", [merge("c")])
    view.noted("d", BIRTH, online=True)
    assert [record.name for record in view.records()] == ["b", "c", "d"]
    view.noted("e", BIRTH, online=True)
    view.noted("f", BIRTH, online=True)
    assert [record.name for record in view.records()] == ["d", "e", "f"]
    assert view.counts() == (3, 3)


def test_counters_of_an_earlier_process_are_added() -> None:
    view = FleetView()
    view.restored([DeviceCounts("a", 3, 30, 300, {"norm": 2}), DeviceCounts("b", 1, 10, 100)])
    view.merged("m", [merge("a")])
    assert view.totals()["updates"] == {"merged": 5, "rejected": 2}
    assert view.device("a", {}, blocked=False) | {"updates": 4, "bytes": 400, "rejected": 2} == view.device(
        "a", {}, blocked=False
    )


def test_it_may_be_read_while_it_is_written() -> None:
    view = FleetView(most=50)
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop(act: object) -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                act(number)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def write(number: int) -> None:
        view.merged("m", [merge(f"pi-{number % 80}", number)])
        view.noted(f"pi-{number % 70}", BIRTH, online=number % 3 == 0)
        view.rejected("m", f"pi-{number % 60}", "why", f"kind-{number % 5}", told=True)
        stream = Stream("g")
        view.connected(stream)
        view.disconnected(stream)

    def read(number: int) -> None:
        view.device(f"pi-{number % 80}", {"m": 5}, blocked=False)
        after = ""
        for _ in range(3):
            _, then = view.page(after, 20, "")
            after = then or ""
        [record.row(5, blocked=False) for record in view.records()]
        view.totals(), view.events(0, 200), view.gateways()

    threads = [threading.Thread(target=loop, args=(act,)) for act in (write, write, read, read)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(view.records()) == 50
    assert view.counts()[1] == sum(record.online for record in view.records())


def test_a_view_that_fails_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    view = FleetView()
    view.vitals_to = lambda _device, _payload: 1 / 0  # type: ignore[assignment, return-value]
    with caplog.at_level(logging.ERROR):
        view.vitals("pi-1", b"x")
    assert "the view of the fleet missed something" in caplog.text


def test_a_flood_of_vitals_costs_one_reading_a_device() -> None:
    taken: list[str] = []
    refused: list[int] = []
    there = threading.Event()

    def take(device: str, _values: object) -> None:
        taken.append(device)
        there.set()

    payload = encode(Vitals({"a": 1.0}))
    with VitalsInbox(take, lambda: refused.append(1)) as inbox:
        begun = time.monotonic()
        for _ in range(20_000):
            inbox.put("flood", payload)
        inbox.put("large", b"x" * (LIMIT_BYTES + 1))
        inbox.put("odd", b"\xff")
        inbox.put("honest", payload)
        seconds = time.monotonic() - begun
        deadline = time.monotonic() + 30
        while "honest" not in taken:
            assert time.monotonic() < deadline
            there.wait(0.1)
    assert taken.count("flood") <= 2 + seconds
    assert len(refused) == 2


def test_every_kind_of_refusal_is_a_word_for_metrics() -> None:
    kinds = [kind for part in get_args(Kind) for kind in (get_args(part) or (part,))]
    metrics = Metrics()
    for kind in kinds:
        metrics.of("m").rejected(kind)
        assert metrics.registry.get_sample_value("pollen_server_rejections_total", {"model": "m", "kind": kind}) == 1
    assert {"blocked", "unreadable", "size", "samples", "not-finite", "unknown-task", "rate"} <= set(kinds)
