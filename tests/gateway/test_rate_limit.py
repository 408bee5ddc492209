"""What one device may send, and what becomes of what exceeds it."""

import pytest

from gateway import rate_limit
from gateway.admission import Admission, Admitted
from gateway.counts import Counts
from gateway.rate_limit import RateLimit
from gateway.settings import Limits


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _upload(limit, device="device-1", size=10):
    return limit.refuses(device, upload=True, size=size)


def test_a_burst_passes_and_then_the_rate(clock):
    limit = RateLimit(Limits(uploads_per_s=2.0, upload_burst=3), clock)
    assert [_upload(limit) for _ in range(5)] == [None, None, None, "rate", "rate"]
    clock.now += 1.0
    assert [_upload(limit) for _ in range(3)] == [None, None, "rate"]
    clock.now += 1000.0
    assert [_upload(limit) for _ in range(4)] == [None, None, None, "rate"]


def test_one_devices_flood_takes_nothing_from_another(clock):
    limit = RateLimit(Limits(uploads_per_s=1.0, upload_burst=2), clock)
    for _ in range(1000):
        _upload(limit, "flooder")
    assert [_upload(limit, "honest") for _ in range(2)] == [None, None]


def test_uploads_and_other_messages_have_a_bucket_each(clock):
    limit = RateLimit(Limits(uploads_per_s=1.0, upload_burst=1, messages_per_s=1.0, message_burst=1), clock)
    assert _upload(limit) is None
    assert limit.refuses("device-1", upload=False, size=1) is None
    assert _upload(limit) == "rate"
    assert limit.refuses("device-1", upload=False, size=1) == "rate"


def test_an_update_larger_than_the_bucket_passes_and_is_waited_for(clock):
    limit = RateLimit(Limits(bytes_per_s=1000), clock)
    assert _upload(limit, size=11_000) is None
    assert _upload(limit, size=1) == "bytes"
    clock.now += 8.9
    assert _upload(limit, size=1) == "bytes"
    clock.now += 0.2
    assert _upload(limit, size=1) is None


def test_no_limit_is_none(clock):
    limit = RateLimit(Limits(uploads_per_s=0, messages_per_s=0, bytes_per_s=0), clock)
    assert {_upload(limit, size=10**9) for _ in range(10_000)} == {None}
    assert {limit.refuses("device-1", upload=False, size=10**9) for _ in range(10_000)} == {None}


def test_a_clock_that_stands_still_gives_nothing_more_than_the_burst(clock):
    limit = RateLimit(Limits(uploads_per_s=50.0, upload_burst=100), clock)
    assert sum(_upload(limit) is None for _ in range(1000)) == 100


def test_memory_is_bounded_and_the_last_heard_of_are_kept(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "MOST_DEVICES", 3)
    limit = RateLimit(Limits(uploads_per_s=1.0, upload_burst=1), clock)
    for name in ("a", "b", "c", "a", "d"):
        _upload(limit, name)
    assert len(limit) == 3
    assert [_upload(limit, name) for name in ("a", "c", "d")] == ["rate"] * 3, "b was forgotten"


def test_a_device_over_its_limit_is_told_of_once_a_minute(clock):
    limit = RateLimit(Limits(), clock)
    _upload(limit)
    assert limit.limited() == 0
    assert [limit.may_tell("device-1") for _ in range(3)] == [True, False, False]
    assert limit.limited() == 1
    clock.now += 60.0
    assert limit.limited() == 0
    assert limit.may_tell("device-1")


def test_limits_that_change_hold_for_devices_already_known(clock):
    limit = RateLimit(Limits(uploads_per_s=1.0, upload_burst=1), clock)
    assert [_upload(limit), _upload(limit)] == [None, "rate"]
    limit.change(Limits(uploads_per_s=100.0, upload_burst=10))
    clock.now += 1.0
    assert [_upload(limit) for _ in range(11)] == [None] * 10 + ["rate"]


def _admission(**limits):
    counts = Counts()
    return Admission(Limits(**limits), counts), counts


def _topic(leaf, device="device-1"):
    return f"pollen/1/test/d/{device}/{leaf}"


def test_every_refusal_is_counted_by_its_reason():
    admission, counts = _admission(uploads_per_s=1.0, upload_burst=1, update_bytes=10, message_bytes=5)
    assert admission.admit("pollen/1/test/nonsense", b"x", qos=1, again=False) is None
    assert admission.admit(_topic("spam"), b"x", qos=1, again=False) is None
    assert admission.admit(_topic("update"), b"x", qos=0, again=False) is None
    assert admission.admit(_topic("vitals"), b"123456", qos=0, again=False) is None
    large = admission.admit(_topic("update"), bytes(11), qos=1, again=False)
    assert large is not None
    assert large.leaf == "oversize"
    assert admission.admit(_topic("update"), b"x", qos=1, again=False) is None
    assert counts.refused == {"topic": 3, "oversize": 2, "rate": 1}
    assert counts.received == {"other": 2, "update": 3, "vitals": 1}


def test_a_redelivery_is_not_held_against_the_device():
    admission, counts = _admission(uploads_per_s=1.0, upload_burst=1)
    for _ in range(5):
        assert admission.admit(_topic("update"), b"x", qos=1, again=True) == Admitted("device-1", "update", b"x")
    assert admission.admit(_topic("update"), b"x", qos=1, again=False) is not None
    assert not counts.refused


def test_a_devices_newest_state_passes_late_rather_than_never(monkeypatch):
    clock = Clock()
    admission, counts = _admission(messages_per_s=1.0, message_burst=2)
    monkeypatch.setattr(admission.rate, "_clock", clock)
    admitted = [admission.admit(_topic("state"), b"%d" % number, qos=1, again=False) for number in range(5)]
    assert [one is not None for one in admitted] == [True, True, False, False, False]
    assert list(admission.late_states()) == []
    clock.now += 1.0
    assert list(admission.late_states()) == [Admitted("device-1", "state", b"4")]
    assert list(admission.late_states()) == []
    assert counts.refused["rate"] == 3
    admission.admit(_topic("state"), b"late", qos=1, again=False)
    clock.now += 1.0
    assert admission.admit(_topic("state"), b"newest", qos=1, again=False) is not None
    clock.now += 1.0
    assert list(admission.late_states()) == [], "what was overtaken is not sent any more"
