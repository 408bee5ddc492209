"""What a device makes of shared values, personal layers and moving averages, with the real interpreter."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.clock import SystemClock
from edge_client.learning.prequential import FADE
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.outbox import Outbox
from edge_client.settings import EdgeSettings, Learner, Training
from edge_client.training import optimizers
from edge_client.training.train_task import OpenTrain, diverged, finish, lacks, resume, start
from edge_client.training.trainer import TrainingDivergedError
from pollen import encoding, messages
from pollen.bundle import Bundle, Floats
from pollen.errors import BundleError
from pollen.interpreter import load
from pollen.messages import Snapshot, Task, Update
from pollen.objective import Schedule
from pollen.sharing import Sharing
from tests.edge_client.fleet import LIMIT, decoded
from tests.edge_client.learning.test_learning import sine

Bundles = Callable[[str], Bundle]
WINDOW, CHANNELS = 4, 2
PERSONAL = pytest.mark.parametrize("personal", [("head",), ("norm", "head"), ()], ids=["head", "norm and head", "none"])


def with_personal(bundle: Bundle, personal: Sequence[str], rate: float | Schedule | None = None) -> Bundle:
    """The same graph and values with other personal layers, and another learning rate if given."""
    optimizer = bundle.manifest.optimizer if rate is None else replace(bundle.manifest.optimizer, learning_rate=rate)
    return replace(bundle, manifest=replace(bundle.manifest, personal=tuple(personal), optimizer=optimizer))


class Bench:
    """A device without sensor and network: one buffer of exactly one batch, so that the order of examples is none."""

    def __init__(self, folder: Path, outbox: Outbox, **settings: Any) -> None:
        learner = Learner(replay_samples=8, standardise=False)
        training = Training(new_samples=1, epochs=5, **settings)
        self.settings = EdgeSettings("pi-1", "test", "telemetry", folder, learner=learner, training=training)
        self.outbox = outbox
        self.store = ModelStore(folder, LIMIT)
        folder.mkdir(exist_ok=True)
        self.model = DeviceModel(self.settings, self.store, outbox)
        self.model.set_channels(CHANNELS)
        self.tasks = 0

    def use(self, bundle: Bundle, shared: Floats | None = None, version: int = 0) -> None:
        """Take a bundle and a snapshot as from the network, then 8 examples."""
        if self.model.digest != bundle.digest:
            assert self.model.take_bundle(bundle.to_bytes(), bundle.digest)
        self.publish(bundle, bundle.shared if shared is None else shared, version)
        self.model.observe(sine(WINDOW + 8))

    def publish(self, bundle: Bundle, shared: Floats, version: int) -> None:
        digest = hashlib.sha256(shared.tobytes()).digest()
        values = encoding.named(shared, bundle.manifest.shared)
        snapshot = Snapshot(bundle.manifest.model, version, digest, values)
        self.model.take_snapshot(messages.encode(snapshot), version)

    def task(self, **config: Any) -> OpenTrain:
        self.tasks += 1
        task = Task(self.tasks.to_bytes(16, "big"), "train", "telemetry", 0, self.model.digest, config)
        return resume(task, self.model, self.outbox, LIMIT)

    def train(self, train: OpenTrain) -> Update:
        chance = random.Random(4)
        run = start(train, self.model, self.settings.training, chance=chance, clock=SystemClock())
        while not run.advance(1.0):
            pass
        assert run.result is not None
        row = finish(train, run.result, self.model, self.outbox, settings=self.settings, chance=chance)
        assert row is not None
        return messages.decode_update(self.outbox.payload(row.task), LIMIT)


@contextmanager
def bench(folder: Path, **settings: Any) -> Iterator[Bench]:
    with Outbox(folder / "outbox.sqlite", LIMIT) as outbox:
        device = Bench(folder, outbox, **settings)
        yield device
        device.store.flush()


def examples() -> tuple[Floats, Floats]:
    """The 8 examples [8, 4, 2] and targets [8, 2] that `Bench.use` makes."""
    values = np.concatenate([sample.values for sample in sine(WINDOW + 8)])
    return np.stack([values[at : at + WINDOW] for at in range(8)]), values[WINDOW:]


def by_hand(bundle: Bundle, weights: Floats, state: Floats, *, mu: float, base: Floats) -> tuple[Floats, Floats]:
    """One training of five steps, all examples in each."""
    graph, manifest, weights = load(bundle), bundle.manifest, weights.copy()
    pulled = np.concatenate(
        [np.full(tensor.size, tensor.layer not in manifest.personal) for tensor in manifest.weights]
    )
    x, y = examples()
    stepper = optimizers.make(manifest.optimizer, manifest)
    for _ in range(5):
        step = graph.gradient(weights, x, y, state)
        stepper.step(weights, step.gradient + np.float32(mu) * pulled * (weights - base))
        state = step.state
    return weights, state


@PERSONAL
@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_two_trainings_equal_the_same_steps_by_hand(
    bundles: Bundles, tmp_path: Path, personal: Sequence[str], mu: float
) -> None:
    bundle = with_personal(bundles("personal"), personal)
    with bench(tmp_path, proximal_mu=mu) as device:
        device.use(bundle)
        train = device.task(encoding="f32")
        for _ in range(2):
            update = device.train(train)
        weights, state = bundle.weights, bundle.state
        for _ in range(2):
            weights, state = by_hand(bundle, weights, state, mu=mu, base=bundle.weights)
        for found, expected in zip(device.model.join(device.model.newest), (weights, state), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)
        assert set(update.delta) == {tensor.name for tensor in bundle.manifest.shared}
        assert update.steps == device.model.personal.steps == 10
        moved = decoded(update, bundle)
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(bundle.shared + moved, device.model.newest, atol=1e-6)
        kept = device.outbox.personal(bundle.digest, device.model.personal.layout)
        assert kept is not None
        np.testing.assert_array_equal(kept.values, device.model.personal.values)
    assert len(kept.values) == bundle.manifest.parameters + bundle.manifest.state_size - bundle.manifest.shared_size


def test_a_snapshot_replaces_the_shared_values_and_no_personal_ones(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("personal")
    with bench(tmp_path) as device:
        device.use(bundle)
        device.train(device.task())
        personal = device.model.personal.values
        assert not np.array_equal(device.model.newest, bundle.shared)
        shared = bundle.shared + np.float32(0.25)
        device.publish(bundle, shared, 1)
        np.testing.assert_array_equal(device.model.newest, shared)
        np.testing.assert_array_equal(device.model.personal.values, personal)
        weights, state = device.model.join(shared)
        update = device.train(device.task())
        expected, _ = by_hand(bundle, weights, state, mu=0.0, base=weights)
        np.testing.assert_allclose(device.model.join(device.model.newest)[0], expected, atol=1e-6)
        assert update.base == 1


def test_a_restart_goes_on_where_the_last_training_ended(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("personal")
    with bench(tmp_path) as device:
        device.use(bundle)
        device.train(device.task())
        before = device.model
    with bench(tmp_path) as device:
        device.model.restore()
        assert device.model.personal.steps == 5
        np.testing.assert_array_equal(device.model.personal.values, before.personal.values)
        train = device.task()
        assert (train.steps, train.samples) == (5, 8)
        np.testing.assert_allclose(device.model.newest, before.newest, atol=1e-6)
        device.model.set_channels(CHANNELS)
        device.model.observe(sine(WINDOW + 8))
        assert device.train(train).steps == device.model.personal.steps == 10


def test_a_learning_rate_schedule_goes_on_after_a_restart(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("personal")
    rate = Schedule("piecewise_constant_decay", boundaries=(4.0,), rates=(0.05, 0.0))  # five steps, then none
    bundle = with_personal(bundle, ("head",), rate)
    with bench(tmp_path) as device:
        device.use(bundle)
        device.train(device.task())
        trained = device.model.personal.values
    assert not np.array_equal(trained, Sharing(bundle.manifest).split(bundle.weights, bundle.state)[1])
    with bench(tmp_path) as device:
        device.model.restore()
        device.use(bundle, version=1)
        update = device.train(device.task())
        np.testing.assert_array_equal(device.model.personal.values, trained)
        assert update.steps == 5
        sent = encoding.named(decoded(update, bundle), bundle.manifest.shared)
        assert {name for name, values in sent.items() if np.any(values)} == {"norm/moving_mean", "norm/moving_variance"}


def test_a_new_bundle_takes_the_personal_values_of_the_old_one_over(bundles: Bundles, tmp_path: Path) -> None:
    first = bundles("personal")
    second, other = with_personal(first, ("head",), 0.01), with_personal(first, ("norm", "head"))
    with bench(tmp_path) as device:
        device.use(first)
        device.train(device.task())
        trained = device.model.personal.values
        device.use(second)
        np.testing.assert_array_equal(device.model.personal.values, trained)
        assert device.model.personal.steps == 0, "a schedule starts anew with a new bundle"
        np.testing.assert_array_equal(device.model.newest, second.shared)
        device.train(device.task())
        assert device.model.take_stored(first.digest), "the server went back"
        np.testing.assert_array_equal(device.model.personal.values, trained)
        assert device.model.personal.steps == 5
        device.use(other)
        _, own = device.model.join(other.shared)
        np.testing.assert_array_equal(own, other.state)
        np.testing.assert_array_equal(device.model.join(other.shared)[0], other.weights)


def test_a_negative_moving_variance_is_used_as_zero_and_repaired_by_the_next_update(
    bundles: Bundles, tmp_path: Path
) -> None:
    bundle = bundles("personal")
    shared = bundle.shared.copy()
    view = encoding.named(shared, bundle.manifest.shared)["norm/moving_variance"]
    view[:] = -0.5
    with bench(tmp_path) as device:
        device.use(bundle, shared)
        _, state = device.model.join(device.model.newest)
        assert encoding.named(state, bundle.manifest.state)["norm/moving_variance"].tolist() == [0.0] * len(view)
        assert device.model.learner is not None
        assert device.model.learner.prequential.error < 1e2, "predictions are numbers"
        update = device.train(device.task(encoding="f32"))
        merged = encoding.named(shared + decoded(update, bundle), bundle.manifest.shared)["norm/moving_variance"]
        assert merged.min() >= 0
        assert np.isfinite(list(update.metrics.values())).all()


@pytest.mark.parametrize("chosen", ["f16", "q8"])
def test_a_lossy_update_of_moving_averages_is_as_exact_as_its_encoding(
    bundles: Bundles, tmp_path: Path, chosen: str
) -> None:
    bundle = with_personal(bundles("personal"), ())
    with bench(tmp_path) as device:
        device.use(bundle)
        update = device.train(device.task(encoding=chosen))
        exact = encoding.named(device.model.newest - bundle.shared, bundle.manifest.shared)
        sent = encoding.named(decoded(update, bundle), bundle.manifest.shared)
        for name in ("norm/moving_mean", "norm/moving_variance"):
            largest = np.abs(exact[name]).max()
            assert largest > 0
            assert np.abs(sent[name] - exact[name]).max() <= largest * (1 / 127 if chosen == "q8" else 2**-10)
        x, y = examples()
        graph, shared = load(bundle), bundle.shared + decoded(update, bundle)
        losses = []
        for values in (shared, device.model.newest):
            weights, state = device.model.join(values)
            losses.append(float(np.square(graph.predict(weights, x, state) - y).mean()))
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(("spoilt", "config"), [(True, {}), (False, {"learning_rate": 1e3, "epochs": 100})])
def test_personal_values_that_only_diverge_start_again_and_good_ones_survive_a_bad_task(
    bundles: Bundles, tmp_path: Path, spoilt: bool, config: dict[str, float]
) -> None:
    bundle = with_personal(bundles("personal"), ("norm", "head"))
    with bench(tmp_path) as device:
        device.use(bundle)
        for _ in range(5):
            device.train(device.task())
        model = device.model
        if spoilt:
            model.personal = replace(model.personal, values=np.full_like(model.personal.values, 1e30))
        before = model.personal.values
        train = device.task(**config)
        run = start(train, model, device.settings.training, chance=random.Random(4), clock=SystemClock())
        with pytest.raises(TrainingDivergedError):
            run.advance(60.0)
        diverged(train, run, model)
        expected = Sharing(bundle.manifest).split(bundle.weights, bundle.state)[1] if spoilt else before
        np.testing.assert_array_equal(model.personal.values, expected)
        assert device.train(device.task()).metrics["loss_after"] < 1


def test_examples_are_scored_by_the_personalised_model(bundles: Bundles, tmp_path: Path) -> None:
    bundle = with_personal(bundles("personal"), ("norm", "head"))
    x, y = examples()
    with bench(tmp_path) as device:
        device.use(bundle)
        for _ in range(5):
            device.train(device.task())
    with bench(tmp_path) as device:
        device.model.restore()
        device.model.set_channels(CHANNELS)
        device.use(bundle)
        weights, state = device.model.join(bundle.shared)
        found = np.abs(load(bundle).predict(weights, x, state) - y).mean(axis=1)
        general = np.abs(load(bundle).predict(bundle.weights, x, bundle.state) - y).mean(axis=1)
        assert device.model.learner is not None
        error, fades = device.model.learner.prequential.error, FADE ** np.arange(len(found))[::-1]
        assert error == pytest.approx(np.average(found, weights=fades), rel=1e-4)
        assert error < 0.9 * np.average(general, weights=fades)


def test_a_model_with_state_waits_for_a_whole_batch_and_needs_room_for_one(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("personal")
    with bench(tmp_path) as device:
        assert device.model.take_bundle(bundle.to_bytes(), bundle.digest)
        task = device.task().task
        device.model.observe(sine(WINDOW + 7))
        assert lacks(task.config, device.model, device.settings.training, 0)
        device.model.observe(sine(WINDOW + 8)[-1:])
        assert not lacks(task.config, device.model, device.settings.training, 0)
        small = replace(device.settings, learner=Learner(replay_samples=7))
        narrow = DeviceModel(small, device.store, device.outbox)
        with pytest.raises(BundleError, match=r"whole batches of 8; learner\.replay_samples = 7"):
            narrow.take_bundle(bundle.to_bytes(), bundle.digest)
