"""What happens to samples: predicted, scored, and only then learned."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.learning.inputs import Inputs
from edge_client.learning.labels import LabelEvent
from edge_client.learning.learner import Learner
from edge_client.learning.prediction import Prediction
from edge_client.learning.prequential import FADE
from edge_client.learning.standardise import Standardiser
from edge_client.sensors.sampling import Sample
from edge_client.settings import Drift, EdgeSettings, Labels
from edge_client.settings import Learner as LearnerSettings
from pollen import cbor
from pollen.bundle import Bundle
from pollen.errors import SettingsError
from pollen.interpreter import load

Bundles = Callable[[str], Bundle]

CHANNELS = 2


def stream(count: int, *, start: int = 0, seed: int = 0, first: float = 0.0) -> list[Sample]:
    """Two noisy sines, a reading a second, from reading `start` on."""
    rng = np.random.default_rng(seed)
    t = np.arange(start + count)
    values = np.stack([20 + 3 * np.sin(t / 3), 1000 + np.cos(t / 3)], axis=1) + rng.normal(0, 0.1, (len(t), 2))
    return [
        Sample(index, first + index, 0.0, values[index : index + 1].astype(np.float32), None)
        for index in range(start, start + count)
    ]


def learner(bundle: Bundle, *, labels: Labels | None = None, drift: Drift | None = None, **settings: Any) -> Learner:
    settings = {"reservoir_share": 0.0} | settings
    how = LearnerSettings(**settings)
    return Learner(load(bundle), how, CHANNELS, Standardiser(CHANNELS, 1000), labels=labels, drift=drift)


def heard(one: Learner) -> list[Prediction]:
    """What a listener hears from now on."""
    predictions: list[Prediction] = []
    one.listeners.append(predictions.append)
    return predictions


def test_an_example_is_scored_before_it_is_learned(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    samples = stream(6)
    assert one.observe(samples, bundle.weights, bundle.state) == 2
    window = np.concatenate([sample.values for sample in samples])
    graph = load(bundle)
    x, y = np.stack([window[0:4], window[1:5]]), window[4:6]
    errors = np.abs(graph.predict(bundle.weights, x) - y).mean(axis=1)
    baseline = np.abs(window[3:5] - y).mean(axis=1)
    weights = np.array([FADE, 1.0])
    assert one.prequential.error == pytest.approx(np.average(errors, weights=weights), rel=1e-5)
    assert one.prequential.baseline == pytest.approx(np.average(baseline, weights=weights), rel=1e-5)
    assert one.prequential.count == len(one.buffer) == 2


def test_a_gap_in_the_readings_is_no_example(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    assert (
        one.observe([*stream(5), *stream(5, start=6)], bundle.weights, bundle.state) == 2
    )  # one before the gap, one after it


def test_a_prediction_that_isnt_a_number_counts_as_very_wrong(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    one.observe(stream(6), np.full_like(bundle.weights, np.nan), bundle.state)
    assert one.prequential.error == 1e3


def test_a_prediction_is_scored_with_the_weights_of_the_moment_it_was_made(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    samples = stream(5)
    one.observe(samples[:4], bundle.weights, bundle.state)
    # A training that has seen the truth would have made other weights of them.
    assert one.observe(samples[4:], np.full_like(bundle.weights, 7.0), bundle.state) == 1
    window = np.concatenate([sample.values for sample in samples])
    expected = np.abs(load(bundle).predict(bundle.weights, window[np.newaxis, :4]) - window[4]).mean()
    assert one.prequential.error == pytest.approx(min(expected, 1e3), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("burst", [1, 5])
def test_what_comes_later_changes_no_prediction(bundles: Bundles, at_once: int, burst: int) -> None:
    bundle = bundles("forecast")

    def predictions(truth: float) -> list[list[float]]:
        one = learner(bundle)
        found = heard(one)
        values = np.concatenate([sample.values for sample in stream(60)])
        values[50:] = truth
        samples = [
            Sample(index, float(index), 0.0, values[burst * index : burst * (index + 1)], None)
            for index in range(60 // burst)
        ]
        for start in range(0, len(samples), at_once):
            one.observe(samples[start : start + at_once], bundle.weights, bundle.state)
        return [prediction.values.tolist() for prediction in found]

    usual, other = predictions(20.0), predictions(1e6)
    known = 50 - 10 - 3  # 10 readings warm up, 4 make the first window
    assert len(usual) == len(other) == 60 - 10 - 3
    assert usual[:known] == other[:known]
    assert usual[known:] != other[known:]


def test_one_by_one_and_many_at_once_learn_the_same(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    states = []
    for at_once in (1, 64):
        one = learner(bundle, horizon=3)
        samples = stream(200)
        for start in range(0, len(samples), at_once):
            one.observe(samples[start : start + at_once], bundle.weights, bundle.state)
        states.append((one.prequential.error, one.prequential.baseline, one.buffer.take(np.arange(len(one.buffer)))))
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-5)
    assert states[0][1] == states[1][1]
    for index in range(2):
        np.testing.assert_array_equal(states[0][2][index], states[1][2][index])


def test_examples_of_horizon_3_and_hop_2(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False, horizon=3, hop=2)
    samples = [Sample(n, float(n), 0.0, np.array([[n, -n]], np.float32), None) for n in range(1, 12)]
    assert one.observe(samples, bundle.weights, bundle.state) == 3
    x, y = one.buffer.take(np.arange(3))
    assert x[:, -1, 0].tolist() == [4, 6, 8]
    assert y[:, 0].tolist() == [7, 9, 11]
    assert one.prequential.baseline == pytest.approx(3.0), "the last value, three readings on"


def test_forecasts_are_announced_in_the_channels_own_units(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle)
    predictions = heard(one)
    samples = stream(30)
    one.observe(samples[:20], bundle.weights, bundle.state, version=6)
    values = np.concatenate([sample.values for sample in samples]).astype(np.float64)
    mean, deviation = values[:19].mean(axis=0), values[:19].std(axis=0)
    x = ((values[16:20] - mean) / deviation).astype(np.float32)
    expected = load(bundle).predict(bundle.weights, x[np.newaxis])[0] * deviation + mean
    np.testing.assert_allclose(predictions[-1].values, expected, rtol=1e-4)
    assert [prediction.number for prediction in predictions] == list(range(1, 8))
    assert predictions[-1].version == 6
    assert predictions[0].error is None
    assert predictions[-1].error is not None


def test_the_error_told_is_that_of_the_newest_truth_known(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False, horizon=2)
    predictions = heard(one)
    one.observe(stream(8), bundle.weights, bundle.state)
    assert [prediction.error is None for prediction in predictions] == [True, True, False, False, False]


def test_a_listener_that_fails_hurts_nobody(bundles: Bundles, caplog: pytest.LogCaptureFixture) -> None:
    bundle = bundles("forecast")
    one = learner(bundle)

    def fail(prediction: Prediction) -> None:
        raise RuntimeError("no socket")

    one.listeners.append(fail)
    predictions = heard(one)
    assert one.observe(stream(40), bundle.weights, bundle.state) == 26
    assert len(predictions) == 27
    assert caplog.text.count("a listener of predictions fails: no socket") == 1


def test_what_is_no_number_is_not_announced(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle)
    predictions = heard(one)
    one.observe(stream(40), np.full_like(bundle.weights, np.nan), bundle.state)
    assert predictions == []
    assert one.windows == 27


def test_readings_of_another_width_are_left_alone(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    other = [Sample(n, float(n), 0.0, np.ones((1, 5), np.float32), None) for n in range(5)]
    assert one.observe([*other, *stream(6, start=5)], bundle.weights, bundle.state) == 2


def test_values_of_any_size_give_finite_errors(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    rng = np.random.default_rng(0)
    for standardise in (True, False):
        one = learner(bundle, standardise=standardise)
        predictions = heard(one)
        values = (rng.choice([-1, 1], (300, 2)) * 10.0 ** rng.uniform(-38, 38.5, (300, 2))).astype(np.float32)
        samples = [Sample(n, float(n), 0.0, values[n : n + 1], None) for n in range(300)]
        one.observe(samples, bundle.weights, bundle.state)
        assert np.isfinite([one.prequential.error, one.prequential.baseline]).all()
        assert all(np.isfinite(prediction.values).all() for prediction in predictions)
        assert np.isfinite(one.buffer.take(np.arange(len(one.buffer)))[0]).all()


# Labels


def motion(count: int, *, start: int = 0, label: int | None = None) -> list[Sample]:
    rng = np.random.default_rng(1)
    return [
        Sample(n, float(n), 5000.0 + n, rng.normal(size=(1, 2)).astype(np.float32), label, synchronised=True)
        for n in range(start, start + count)
    ]


TOPIC = Labels(source="topic", topic="button", wait_s=30.0, span_s=5.0)


def labelled(bundle: Bundle, labels: Labels = TOPIC, **settings: Any) -> Learner:
    return learner(bundle, labels=labels, target="label", standardise=False, **settings)


def test_a_label_with_the_reading_is_learned_at_once(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle, Labels())
    predictions = heard(one)
    assert one.observe(motion(10, label=2), bundle.weights, bundle.state) == 5
    assert set(one.buffer.take(np.arange(5))[1].tolist()) == {2}
    assert predictions[0].values.sum() == pytest.approx(1.0, abs=1e-5)
    assert one.observe(motion(3, start=10), bundle.weights, bundle.state) == 0
    assert one.missed_labels == 3
    assert len(predictions) == 8, "predicted all the same"


def test_a_late_label_scores_what_was_predicted_then(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    predictions = heard(one)
    one.observe(motion(20), bundle.weights, bundle.state)
    guess = int(predictions[-1].values.argmax())
    one.observe(motion(1, start=20), np.zeros_like(bundle.weights), bundle.state)
    assert one.prequential.count == 0
    assert one.label(LabelEvent(float(guess), 19.0, 19.0)) is not None
    assert (one.prequential.count, one.prequential.error) == (1, 0.0)
    assert len(one.buffer) == 1
    one.label(LabelEvent(float(guess), 19.0, 19.0))
    assert one.prequential.count == 1, "a window has one label"


def test_labels_early_late_never_and_out_of_order(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    one.observe(motion(10), bundle.weights, bundle.state)  # windows at 5 … 9
    one.label(LabelEvent(1.0, 9.0, 11.0))  # of 9 now, of 10 and 11 early
    one.label(LabelEvent(2.0, 6.0, 7.0))  # earlier ones after later ones
    assert one.prequential.count == 3
    assert one.observe(motion(4, start=10), bundle.weights, bundle.state) == 2
    one.observe(motion(60, start=14), bundle.weights, bundle.state)
    assert one.missed_labels == 2 + 31, "5 and 8, and what is older than 30 s"
    one.label(LabelEvent(2.0, 5.0, 8.0))
    assert one.buffer.take(np.arange(len(one.buffer)))[1].tolist() == [1, 2, 2, 1, 1]


def test_a_late_label_is_given_in_monotonic_seconds(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    assert one.label(LabelEvent(1.0, 5005.0, 5009.0, wall=True)) is None
    one.observe(motion(10), bundle.weights, bundle.state)
    assert one.label(LabelEvent(1.0, 5005.0, 5009.0, wall=True)) == LabelEvent(1.0, 5.0, 9.0)
    assert one.refused_labels == 1
    assert one.prequential.count == 5


def test_a_late_label_that_is_no_class_is_counted(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    one.observe(motion(10), bundle.weights, bundle.state)
    one.label(LabelEvent(3.0, 5.0, 7.0))
    one.observe(motion(1, start=10, label=-1), bundle.weights, bundle.state)
    assert (one.unknown_labels, one.prequential.count) == (4, 0)


def test_the_baseline_of_late_labels_guesses_when_the_window_is_there(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    one.observe(motion(10), bundle.weights, bundle.state)
    one.label(LabelEvent(2.0, 5.0, 9.0))
    assert one.prequential.baseline == 1.0, "when they were there, class 2 had never been seen"


def test_a_flood_of_windows_and_labels_stays_bounded(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle, Labels(source="topic", topic="button", wait_s=1e9, waiting=50))
    for start in range(0, 3000, 60):
        one.observe(motion(60, start=start), bundle.weights, bundle.state)
    assert one.missed_labels == 3000 - 5 - 50
    for index in range(1000):
        one.label(LabelEvent(index % 3, 0.0, 1e12))
    assert one.prequential.count == 50


def test_a_channel_can_be_the_label_and_is_no_input(bundles: Bundles) -> None:
    bundle = bundles("classes")
    labels = Labels(source="channel", channel="activity")
    settings = EdgeSettings("pi-1", "f", "motion", labels=labels, learner=LearnerSettings(target="label"))
    inputs = Inputs(settings)
    assert inputs.use(3, ("x", "activity", "y"))
    assert not inputs.use(3, ("x", "activity", "y"))
    one = inputs.learner(load(bundle))
    values = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    values[:, 1] = 2
    samples = [Sample(n, float(n), 0.0, values[n : n + 1], None) for n in range(30)]
    one.observe(samples, bundle.weights, bundle.state)
    x, y = one.buffer.take(np.arange(len(one.buffer)))
    assert set(y.tolist()) == {2}
    assert x.shape[1:] == (6, 2)
    assert inputs.use(3, ("x", "y", "activity")), "the same number of other channels"
    inputs.use(3, ("x", "y", "z"))
    with pytest.raises(SettingsError, match="'activity' is no channel of the sensor; it has x, y, z"):
        inputs.learner(load(bundle))


# Drift


def test_after_a_drift_what_is_old_is_forgotten(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, drift=Drift(keep_samples=64), memory_samples=1000)
    calm = stream(800)
    one.observe(calm, bundle.weights * 0, bundle.state)
    assert (one.drifts, one.drifted_at) == (0, None)
    rng = np.random.default_rng(2)
    wild = [
        Sample(800 + n, 800.0 + n, 0.0, (rng.normal(size=(1, 2)) * 300).astype(np.float32), None) for n in range(400)
    ]
    for sample in wild:
        before = one.drifts
        one.observe([sample], bundle.weights * 0, bundle.state)
        if one.drifts > before:
            break
    assert one.drifts == 1
    assert one.drifted_at is not None
    assert one.drifted_at >= 800
    assert len(one.buffer) == 64
    assert one.since_drift == 0


def test_another_models_errors_are_no_drift_and_are_trained_on_at_once(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, drift=Drift(keep_samples=64))
    good, bad = bundle.weights * 0, bundle.weights * 0 + 3
    samples = stream(900)
    one.observe(samples[:600], good, bundle.state)
    one.trained_total = one.buffer.total
    assert one.use(load(bundle))
    assert one.trained_total == 0
    one.observe(samples[600:], bad, bundle.state)
    assert one.drifts == 0
    assert len(one.buffer) > 800


# Across a restart


def restarted(one: Learner, again: Learner, samples: list[Sample]) -> Learner:
    again.restore(cbor.decode(cbor.encode(one.state()), 10**6))
    again.refill(samples)
    return again


def test_after_a_restart_all_goes_on_the_same(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    samples, later = stream(300), stream(200, start=500)
    one = learner(bundle, drift=Drift())
    one.observe(samples, bundle.weights, bundle.state)
    again = restarted(one, learner(bundle, drift=Drift()), samples)
    assert again.prequential.count == one.prequential.count
    assert again.windows == 0, "nothing was predicted"
    for learning in (one, again):
        learning.observe(later, bundle.weights, bundle.state)
    states = [learning.prequential.state() for learning in (one, again)]
    for state in states:
        assert state.pop("hours")[1:]  # the time in between isn't counted
    assert states[0] == states[1]
    assert again.since_drift == one.since_drift
    newest = 150  # of the later stream; earlier ones are scaled by the statistics of the restart
    (x, y), (x_again, y_again) = (
        learning.buffer.take(np.arange(len(learning.buffer))[-newest:]) for learning in (one, again)
    )
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(y, y_again)


def test_stored_samples_become_the_same_examples(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, standardise=False)
    samples = [*stream(50), *stream(50, start=60)]
    one.observe(samples, bundle.weights, bundle.state)
    again = restarted(one, learner(bundle, standardise=False), samples)
    slots = np.arange(len(one.buffer))
    assert len(again.buffer) == len(one.buffer) == 2 * 46
    np.testing.assert_array_equal(one.buffer.take(slots)[0], again.buffer.take(slots)[0])
    assert again.prequential.count == one.prequential.count


def test_stored_labels_come_with_their_samples(bundles: Bundles) -> None:
    bundle = bundles("classes")
    one = labelled(bundle)
    one.refill([*motion(10), *motion(3, start=10, label=1), *motion(5, start=13)])
    assert one.buffer.take(np.arange(len(one.buffer)))[1].tolist() == [1, 1, 1]
    assert one.missed_labels == 0
    one.label(LabelEvent(2.0, 0.0, 100.0))
    assert len(one.buffer) == 3, "what was stored waits for no label"


def test_of_another_models_state_only_the_channels_statistics_are_taken(bundles: Bundles) -> None:
    bundle, other = bundles("forecast"), bundles("dropout")
    one = learner(bundle)
    one.observe(stream(100), bundle.weights, bundle.state)
    again = learner(other)
    again.restore(one.state())
    assert again.prequential.count == 0
    assert again.state()["standardiser"] == one.state()["standardiser"]


def test_a_damaged_state_is_refused_without_harm(bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = learner(bundle, drift=Drift())
    one.observe(stream(100), bundle.weights, bundle.state)
    good, before = one.state(), one.state()
    evaluation = good["evaluation"]
    damaged: list[Any] = [
        {},
        good | {"standardiser": None},
        good | {"standardiser": Standardiser(3, 100).state()},
        good | {"evaluation": None},
        good | {"evaluation": evaluation | {"majority": [1, 2, 3]}},
        good | {"evaluation": evaluation | {"counts": [1]}},
        good | {"evaluation": evaluation | {"counts": [1, 2, "x"]}},
        good | {"evaluation": evaluation | {"counts": 5}},
        good | {"evaluation": evaluation | {"prequential": [1]}},
        good | {"evaluation": [evaluation]},
        [good],
        None,
    ]
    for state in damaged:
        with pytest.raises(ValueError, match=r"."):
            one.restore(state)
        assert one.state() == before
    one.restore(good | {"evaluation": evaluation | {"drift": {"x": 1}}})  # another detector was chosen
    assert one.prequential.count == before["evaluation"]["prequential"]["count"]


# Hostile streams


def test_no_stream_stops_the_learner(bundles: Bundles) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    bundle = bundles("classes")
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    label = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    reading = st.tuples(st.lists(st.tuples(finite, finite), min_size=1, max_size=8), label, st.integers(1, 3))
    event = st.tuples(st.floats(-1e30, 1e30), st.floats(-10, 200), st.floats(0, 50), st.booleans())
    steps = st.lists(reading | event, max_size=60)

    @hypothesis.given(steps, st.integers(0, 7), st.booleans())  # type: ignore[untyped-decorator]
    @hypothesis.settings(max_examples=150, deadline=None)  # type: ignore[untyped-decorator]
    def check(steps: list[Any], hop: int, standardise: bool) -> None:
        how = LearnerSettings(target="label", hop=hop, standardise=standardise, replay_samples=16)
        labels = Labels(source="topic", topic="t", waiting=5, wait_s=20)
        one = Learner(load(bundle), how, 2, Standardiser(2, 50), labels=labels, drift=Drift(keep_samples=4))
        predictions = heard(one)
        number, now = 0, 0.0
        for step in steps:
            if len(step) == 4:
                first, length = step[1], step[2]
                one.label(LabelEvent(step[0], first, first + length, wall=step[3]))
                continue
            values, label, gap = step
            number, now = number + gap, now + gap
            sample = Sample(number, now, now, np.array(values, np.float32), label, synchronised=gap > 1)
            one.observe([sample], bundle.weights, bundle.state)
            again = Learner(load(bundle), how, 2, Standardiser(2, 50), labels=labels, drift=Drift())
            again.restore(one.state())
        assert all(np.isfinite(prediction.values).all() for prediction in predictions)
        assert len(one.buffer) <= 16

    check()


@pytest.mark.parametrize(("target", "name"), [("next", "forecast"), ("label", "classes")])
def test_memory_stays_flat_over_a_million_samples(bundles: Bundles, target: Any, name: str) -> None:
    psutil = pytest.importorskip("psutil")
    bundle = bundles(name)
    rng = np.random.default_rng(0)
    labels = Labels(source="topic", topic="t", waiting=200, wait_s=1e6)
    one = learner(bundle, labels=labels, drift=Drift(), target=target, hop=97, horizon=500, replay_samples=500)
    heard_of = [0]
    one.listeners.append(lambda prediction: heard_of.__setitem__(0, prediction.number))
    process, rows, fed, number = psutil.Process(), 500, 0, 0
    sizes = []
    while fed < 1_000_000:
        exponent = rng.uniform(-38, 38.5, (rows, CHANNELS)) if rng.random() < 0.2 else np.zeros((rows, CHANNELS))
        values = (rng.normal(size=(rows, CHANNELS)).clip(-3, 3) * 10.0**exponent).clip(-3e38, 3e38)
        number += 1 + (rng.random() < 0.05)
        label = None if rng.random() < 0.7 else int(rng.integers(-1, 4))
        sample = Sample(number, float(number), float(number), values.astype(np.float32), label, synchronised=True)
        one.observe([sample], bundle.weights, bundle.state)
        if rng.random() < 0.3:
            first = number + rng.uniform(-100, 100)
            one.label(LabelEvent(int(rng.integers(0, 4)), first, first + 30, wall=bool(rng.random() < 0.5)))
        fed += rows
        if fed % 100_000 == 0:
            sizes.append(process.memory_info().rss)
    assert heard_of[0] > 1000
    assert one.prequential.count > 300
    assert max(sizes[1:]) - sizes[0] < 2 * 2**20
