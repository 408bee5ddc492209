"""The replay buffer: ring and reservoir, fair and balanced, what forgetting leaves, and what a restart brings back."""

import random

import numpy as np
import pytest

from edge_client.learning.replay_buffer import ReplayBuffer
from edge_client.learning.reservoir import AlgorithmR
from pollen.manifest import Loss
from tests.pollen.manifests import manifest


def forecasts(capacity: int, share: float, seed: int = 0) -> ReplayBuffer:
    model = manifest(input_shape=(2,), input_dtype="float32", label_shape=(1,), label_dtype="float32")
    return ReplayBuffer(model, capacity, share, chance=random.Random(seed))


def classes(capacity: int, share: float, seed: int = 0) -> ReplayBuffer:
    loss = Loss("sparse_categorical_crossentropy", from_logits=True)
    model = manifest(
        input_shape=(2,), input_dtype="float32", output_shape=(10,), label_shape=(), label_dtype="int32", loss=loss
    )
    return ReplayBuffer(model, capacity, share, balanced=True, chance=random.Random(seed))


def fill(buffer: ReplayBuffer, values: range, *, reservoir: bool = True) -> None:
    for value in values:
        buffer.add(np.full(2, value, np.float32), np.array([value], np.float32), reservoir=reservoir)


def held(buffer: ReplayBuffer) -> list[int]:
    """The values in the buffer, after checking that each has its own serial number and its own x."""
    slots = np.arange(len(buffer))
    x, y = buffer.take(slots)
    assert (x == y.reshape(-1, 1)).all()
    assert len(set(buffer.serials(slots).tolist())) == len(buffer)
    return sorted(y.ravel().astype(int).tolist())


def test_the_newest_stay_and_the_rest_is_a_sample_of_those_before() -> None:
    buffer = forecasts(20, 0.25)
    fill(buffer, range(15))
    assert held(buffer) == list(range(15))
    fill(buffer, range(15, 500))
    values = held(buffer)
    assert len(values) == len(buffer) == 20
    assert values[5:] == list(range(485, 500))
    assert values[4] < 485
    assert buffer.serials(np.arange(20)).tolist() == buffer.take(np.arange(20))[1].ravel().tolist()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_no_example_is_held_twice_at_any_size(share: float) -> None:
    for capacity in (1, 2, 3, 10):
        buffer = forecasts(capacity, share)
        for value in range(60):
            fill(buffer, range(value, value + 1))
            values = held(buffer)
            assert len(set(values)) == len(values) == min(value + 1, capacity)
            assert value in values


def test_each_example_is_equally_likely_to_be_kept() -> None:
    """Pearson's chi-square test against uniform inclusion, 99.9 % quantile for 99 degrees of freedom."""
    capacity, stream, runs = 10, 100, 3000
    counts = np.zeros(stream)
    chance = random.Random(5)
    for _ in range(runs):
        reservoir = AlgorithmR(capacity, chance)
        places = [-1] * capacity
        for value in range(stream):
            place = reservoir.place(0)
            if place is not None:
                places[place] = value
        counts[places] += 1
    expected = runs * capacity / stream
    # Inclusions of one run exclude one another, hence the factor of sampling without replacement.
    statistic = ((counts - expected) ** 2 / expected).sum() * (stream - 1) / (stream - capacity)
    assert counts.sum() == runs * capacity
    assert statistic < 148.2


def test_a_balanced_reservoir_holds_as_many_of_each_class_as_there_are() -> None:
    """90 % of the stream is class 0, in runs; class 7 comes twice."""
    buffer = classes(400, 0.25)
    rng = np.random.default_rng(1)
    stream = [0 if share < 0.9 else int(1 + 4 * rng.random()) for share in rng.random(200)]
    stream = [label for label in stream for _ in range(30)]
    stream[700] = stream[3000] = 7
    for label in stream:
        buffer.add(np.full(2, label, np.float32), np.array(label, np.int32))
    reservoir = buffer.take(np.arange(300, 400))[1]
    counts = np.bincount(reservoir, minlength=10)
    assert counts.sum() == 100
    assert counts[7] == 2, "a rare class keeps all its examples"
    assert counts[:5].max() - counts[:5].min() <= 2
    assert (buffer.take(np.arange(400))[0][:, 0] == buffer.take(np.arange(400))[1]).all()


def test_within_a_full_class_each_example_is_equally_likely_to_be_kept() -> None:
    """One class only: class balancing is then algorithm R, here over the first and the second half of the stream."""
    halves = np.zeros(2)
    for seed in range(200):
        buffer = classes(20, 0.5, seed)
        for value in range(210):
            buffer.add(np.full(2, value, np.float32), np.array(3, np.int32))
        x, _ = buffer.take(np.arange(10, 20))
        halves += [(x[:, 0] < 100).sum(), (x[:, 0] >= 100).sum()]
    assert halves.sum() == 2000
    assert abs(halves[0] - 1000) < 4 * np.sqrt(2000 * 0.25)


def test_forgetting_leaves_the_newest_and_the_stream_goes_on() -> None:
    for keep in (1, 7, 15):
        buffer = forecasts(20, 0.25)
        fill(buffer, range(300))
        buffer.forget(keep)
        assert held(buffer) == list(range(300 - keep, 300))
        fill(buffer, range(300, 310))
        assert held(buffer)[-10:] == list(range(300, 310))
        fill(buffer, range(310, 600))
        values = held(buffer)
        assert len(values) == 20
        assert values[5:] == list(range(585, 600))
        assert values[0] >= 300 - keep, "what was forgotten doesn't come back"
    buffer = forecasts(20, 0.25)
    fill(buffer, range(25))
    before = held(buffer)
    buffer.forget(25)
    assert held(buffer) == before
    buffer.forget(18)
    assert held(buffer) == [value for value in before if value >= 7]


def test_slots_drawn_before_forgetting_stand_for_what_is_left() -> None:
    buffer = forecasts(20, 0.25)
    fill(buffer, range(300))
    drawn = np.random.default_rng(0).permutation(20)
    buffer.forget(6)
    assert set(buffer.take(drawn)[1].ravel().tolist()) == set(range(294, 300))
    assert set(buffer.serials(drawn).tolist()) == set(range(294, 300))


@pytest.mark.parametrize("samples_left", [0, 4, 15, 40])
def test_a_restored_reservoir_stands_beside_the_refilled_ring(samples_left: int) -> None:
    first = forecasts(20, 0.25)
    fill(first, range(300))
    kept = first.reservoir_serials().tolist()
    order = sorted(range(5), key=lambda place: kept[place])
    second = forecasts(20, 0.25, seed=9)
    second.restore_reservoir([first.reservoir_example(place) for place in order], first.reservoir_state())
    assert held(second) == sorted(kept)
    fill(second, range(300 - samples_left, 300), reservoir=False)
    values = held(second)
    assert set(values) == set(kept) | set(range(300 - min(samples_left, 15), 300))
    assert second.total == 5 + samples_left
    fill(second, range(300, 315))
    assert set(held(second)) >= set(range(300, 315))
    assert second.reservoir_state()["seen"] == 285 + min(samples_left, 15), "algorithm R goes on counting"


def test_a_balanced_reservoir_goes_on_after_a_restart() -> None:
    first = classes(40, 0.5)
    for value in range(400):
        label = 1 if value == 50 else 0
        first.add(np.full(2, label, np.float32), np.array(label, np.int32))
    places = np.argsort(first.reservoir_serials())
    second = classes(40, 0.5)
    second.restore_reservoir([first.reservoir_example(int(place)) for place in places], first.reservoir_state())
    assert second.reservoir_state() == first.reservoir_state()
    for _ in range(400):
        second.add(np.zeros(2, np.float32), np.array(0, np.int32))
    assert np.bincount(second.take(np.arange(20, 40))[1]).tolist() == [19, 1]


def test_what_is_no_reservoir_of_this_buffer_is_refused() -> None:
    buffer = forecasts(20, 0.25)
    fill(buffer, range(300))
    example, state = buffer.reservoir_example(0), buffer.reservoir_state()
    new = forecasts(20, 0.25)
    for examples, found in [([example[:-1]], state), ([example] * 6, state), ([example], {"seen": 0})]:
        with pytest.raises(ValueError, match=r"reservoir|shape"):
            new.restore_reservoir(examples, found)
    with pytest.raises(ValueError, match="no room"):
        buffer.restore_reservoir([example], state)
    balanced = classes(20, 0.25)
    with pytest.raises(ValueError, match="class"):
        balanced.restore_reservoir([bytes(12)], {"classes": [0], "seen": [0], "full": []})
    assert (len(new), new.total, len(balanced)) == (0, 0, 0)
