"""The gateway's plain state: unacknowledged deliveries, what goes up, the roster, the back-off."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gateway.backoff import Backoff
from gateway.deliveries import Deliveries
from gateway.outgoing import Outgoing
from gateway.roster import Roster
from pollen import bridge
from pollen.bridge import DeviceState, Hello, Upload

_STEPS = st.lists(
    st.one_of(
        st.just(("add",)), st.just(("finished",)), st.tuples(st.just("accept"), st.integers(0, 40)), st.just(("new",))
    ),
    max_size=80,
)


@given(_STEPS)
def test_deliveries_are_acknowledged_once_in_order_and_never_before_acceptance(steps):
    deliveries = Deliveries()
    expected = deque()  # (mid, number or None once it may be acknowledged)
    numbers = []
    acknowledged = []
    for mid, step in enumerate(steps, start=1):
        match step:
            case ("add",):
                numbers.append(deliveries.add(mid, "device-1", "update", b"x").delivery)
                expected.append([mid, numbers[-1]])
            case ("finished",):
                deliveries.add_finished(mid)
                expected.append([mid, None])
            case ("accept", index):
                number = numbers[index] if index < len(numbers) else 10_000 + index
                deliveries.accept(number)
                for entry in expected:
                    if entry[1] == number:
                        entry[1] = None
            case _:
                uploads = deliveries.renumber()
                waiting = [entry for entry in expected if entry[1] is not None]
                assert len(uploads) == len(waiting)
                assert not {upload.delivery for upload in uploads} & set(numbers)
                for entry, upload in zip(waiting, uploads, strict=True):
                    entry[1] = upload.delivery
                numbers += [upload.delivery for upload in uploads]
        ready = list(deliveries.take_acknowledgeable())
        for taken in ready:
            assert expected.popleft() == [taken, None]
        assert not expected or expected[0][1] is not None
        acknowledged += ready
    assert acknowledged == sorted(acknowledged)
    assert len(deliveries) == len(expected)


def test_an_acceptance_of_a_forgotten_connection_acknowledges_nothing():
    deliveries = Deliveries()
    old = deliveries.add(1, "device-1", "update", b"old")
    deliveries.forget()
    new = deliveries.add(1, "device-1", "update", b"new")
    deliveries.accept(old.delivery)
    assert list(deliveries.take_acknowledgeable()) == []
    deliveries.accept(new.delivery)
    assert list(deliveries.take_acknowledgeable()) == [1]


def test_what_goes_up_is_batched_in_order_and_bounded_in_bytes_and_frames():
    large = [Upload(number, "device-1", "update", bytes(400_000)) for number in range(7)]
    small = [DeviceState(f"device-{number}", b"birth") for number in range(2500)]
    frames = [Hello("gateway-1", "test", "1"), *large, *small]
    outgoing = Outgoing(frames[0])
    for frame in frames[1:]:
        outgoing.put(frame)
    batches, came = outgoing.batches(), []
    while len(came) < len(frames):
        message = next(batches)
        batch = bridge.decode(message)
        assert len(message) <= bridge.BATCH_BYTES + 400_100
        assert len(batch) <= bridge.BATCH_FRAMES
        came += batch
    assert came == frames
    outgoing.close()
    assert list(batches) == []


def test_the_roster_sends_each_change_once_and_the_newest_only():
    roster = Roster()
    for number in range(1000):
        roster.put("device-1", b"%d" % number)
    roster.put("device-2", b"birth")
    roster.put("device-2", b"birth")
    assert list(roster.take_unsent(10)) == [("device-1", b"999"), ("device-2", b"birth")]
    roster.put("device-2", b"birth")
    assert roster.unsent == 0


def test_the_roster_forgets_a_removed_device_once_the_server_was_told():
    roster = Roster()
    roster.put("device-1", b"birth")
    roster.put("device-1", b"")
    assert list(roster.take_unsent(10)) == [("device-1", b"")]
    roster.repeat()
    assert list(roster.take_unsent(10)) == []
    assert len(roster) == 0


def test_the_roster_is_taken_in_portions():
    roster = Roster()
    for number in range(5):
        roster.put(f"device-{number}", b"birth")
    assert [device for device, _ in roster.take_unsent(3)] == ["device-0", "device-1", "device-2"]
    assert [device for device, _ in roster.take_unsent(3)] == ["device-3", "device-4"]


def test_waits_grow_to_their_bound_and_a_short_connection_does_not_reset_them():
    backoff = Backoff(first_s=1.0, most_s=8.0)
    waits = [backoff.wait_s() for _ in range(200)]
    assert max(waits[:1]) <= 1.0
    assert max(waits[1:2]) <= 2.0
    assert all(0.0 <= wait <= 8.0 for wait in waits)
    assert max(waits) > 4.0
    for _ in range(100):
        backoff.connected()
        backoff.wait_s()
    assert max(backoff.wait_s() for _ in range(100)) > 1.0
